// Bench compares this package with others that do the same job. It measures all
// of them in one run and with the same work: some thousand clients on the
// loopback get what the server publishes, 128 bytes a message.
//
//	cd bench && go run .         # all of it, about a quarter of an hour
//	cd bench && go run . -quick  # less than a minute, writes no files
//	cd bench && go run . -nodes 2,3  # on several nodes, some minutes
//	cd bench && go run . -growth hub,sockets,stampede -rounds 1  # how cost grows, five minutes
//	cd bench && go run . -tls        # over TLS, some minutes
//
// It needs Linux and, for 10,000 clients, as many descriptors for each process.
// It writes a table and two charts into results/. Nothing else should run on the
// machine at the same time. The table has the load average at start and end.
//
// # Flags
//
//	-contenders names   contenders to measure: floor,realtime,gorilla,… (all)
//	-clients numbers    numbers of clients (1000,10000; with -tls 2000)
//	-rounds n           turns of each contender (5)
//	-duration d         time to measure each figure in each turn (1.2s)
//	-limit d            time after which to stop with the turns so far (40m)
//	-nodes numbers      compare on that many nodes instead (none); see results/nodes.md
//	-growth parts       measure how cost grows instead (none): hub, sockets or
//	                    stampede; see results/growth.md. A part's figures stay in
//	                    results/growth.txt until it is measured again.
//	-tls                compare over TLS instead; see results/tls.md
//	-threads n          threads of the load generator (half of the cores, 1 to 4)
//	-out folder         folder for the table and the charts; empty writes none (results)
//	-cpuprofile folder  folder for CPU profiles of the servers, one for each
//	                    contender, number of clients and figure, from the last
//	                    round; empty writes none (empty)
//	-quick              other defaults for these flags: -clients 1000 -rounds 1
//	                    -duration 500ms -out ''
//
// For example, to see where this package's CPU time goes:
//
//	go run . -quick -contenders realtime -cpuprofile /tmp/profiles
//	go tool pprof -top /tmp/profiles/realtime-1000-single.pprof
//
// # Contenders
//
// Each contender is a server process of its own, in a file that has its name. It
// is written as its documentation shows, with default settings. The floor is no
// contender but the least that a server can do: one thread calls write(2) for
// each client, with a ready-made frame or with all 64 frames of a burst. These
// contenders deviate from their documentation:
//
//   - The chat examples of gorilla and coder send a client's message to all
//     clients. Here it goes back to that client, because echoes are measured.
//   - Coder's example lets 16 messages wait for a client and disconnects a client
//     with more. Here the limit is 256, as in gorilla's. The example's limit of
//     ten publishes a second is left out.
//   - Gws sets no deadlines. Its examples drop a client that sends nothing for
//     15 s.
//   - Go-sse sends its headers with the first event. Here it sends them at once.
//     Otherwise the load generator couldn't tell when a client is connected.
//
// # Load
//
// The load generator is the process that you start. Its threads have an epoll
// set each. They make the handshakes, read what comes and check that each client
// gets every message once, in order and unchanged. Over TLS each thread makes its
// handshakes one after the other. The contenders take turns, in
// a new process each time. The order of the turns is reversed from round to
// round. Each figure is the median over the rounds.
//
// A contender fails if it changes, repeats or swaps messages, or if its turn
// lasts longer than two minutes. A contender that loses messages or disconnects
// clients is measured by what arrives, and the table shows its losses. After five
// seconds without a message the missing ones count as lost, and the next ones are
// published.
//
// # Figures
//
// CPU is the user and system time of the server process alone, while a figure is
// measured, divided by the number of deliveries, connections or round trips. The
// sum comes from the kernel's clock for the process, to the nanosecond. The part
// that was spent in the kernel comes from /proc, whose ticks are too coarse for
// more. On the loopback, write(2) does the TCP work of the receiving side too. So
// it is the larger part of most figures.
//
// One at a time: a message is published when all clients have the one before.
//
// Bursts: 64 messages are published as fast as the contender accepts them. The
// next 64 follow when all clients have all of these.
//
// Latency to a client begins just before the call that publishes a message, and
// ends when the client has read it. Latency to the last client begins just before
// the first message of a burst (or the only message) is published, and ends when
// all clients have read all messages.
//
// Memory is the resident size of the server process with silent clients, less its
// size before they connected, divided by their number. It is measured before and
// after a forced garbage collection that returns free memory
// (debug.FreeOSMemory). The kernel's memory for sockets is not included.
//
// Connects are the clients that connect in a second, with 64 handshakes at a
// time.
//
// Echo: every client sends a message, waits until it comes back and sends the
// next.
//
// The load generator needs CPU as well. If the column "load" is near 100 % of a
// core for each of its threads, the load generator limits the deliveries a
// second, and the contender could do more. The CPU figures are valid even then.
// On a machine with two cores, a contender that keeps both busy also has worse
// latencies and rates because of the load generator.
package main
