// Bench measures this package beside others that do the same job, all in one
// run and with the same work: some thousand clients on the loopback that get
// what the server publishes, 128 bytes a message.
//
//	cd bench && go run .         # all of it, about a quarter of an hour
//	cd bench && go run . -quick  # less than a minute, writes no files
//	cd bench && go run . -nodes 2,3  # on several nodes, some minutes
//
// It needs Linux and, for 10,000 clients, as many descriptors a process. It
// writes a table and two charts into results/. Nothing else should run on the
// machine meanwhile: the load average at start and end is in the table.
//
// # Flags
//
//	-contenders names   who takes part: floor,realtime,gorilla,… (all)
//	-clients numbers    numbers of clients (1000,10000)
//	-rounds n           how often each contender takes its turn (5)
//	-duration d         how long each figure is measured, each time (1.2s)
//	-limit d            when to stop, with what has been measured by then (40m)
//	-nodes numbers      compare on so many nodes instead (none); see results/nodes.md
//	-threads n          threads of the load generator (half of the cores, 1 to 4)
//	-out folder         for the table and the charts; empty writes none (results)
//	-cpuprofile folder  for CPU profiles of the servers, by contender, clients
//	                    and figure, of the last round; empty writes none (empty)
//	-quick              another default for what is not given: -clients 1000
//	                    -rounds 1 -duration 500ms -out ''
//
// Where this package's CPU goes, for example:
//
//	go run . -quick -contenders realtime -cpuprofile /tmp/profiles
//	go tool pprof -top /tmp/profiles/realtime-1000-single.pprof
//
// # Contenders
//
// Each is a server process of its own, written as its documentation shows, with
// default settings, in a file that has its name. The floor is none: it is the least
// that a server can do, one thread that calls write(2) with a ready-made frame
// for each client, or with all 64 frames of a burst. What deviates from the
// documentation:
//
//   - Gorilla and coder's chat examples send to all what one client says. Here
//     it goes back to that client, as echoes are measured.
//   - Coder's example lets 16 messages wait for a client and disconnects who
//     has more; here it is 256 as in gorilla's. Its limit of ten publishes a
//     second is left out.
//   - Gws sets no deadlines: its examples drop a client that sends nothing for
//     15 s.
//   - Go-sse sends its headers only with the first event; here they go out at
//     once, as otherwise nobody could tell when a client is connected.
//
// # Load
//
// The load generator is the process that you start: threads with an epoll set
// each, which make the handshakes, read what comes and check that each client
// gets every message once, in order and unchanged. Contenders take turns, a new
// process each time, in rounds whose order alternates, and each figure is the
// median over the rounds.
//
// A contender that changes messages, repeats them or swaps them fails, and so
// does one whose turn takes longer than two minutes. One that loses messages or
// disconnects clients is measured by what does arrive, and its losses stand in
// the table: after five seconds in which nothing comes, what is missing is
// given up and the next is published.
//
// # Figures
//
// CPU is user and system time of the server process alone, over the window
// measured, by the number of deliveries, connections or round trips in it. The
// sum is that of the kernel's clock for the process, to the nanosecond; the
// part of it that was spent in the kernel comes from /proc, whose ticks are too
// coarse for more. On the loopback, write(2) does the receiving side's TCP work
// too, so that it is the larger part of most figures.
//
// One at a time: a message is published once all clients have the one before.
//
// Bursts: 64 messages are published as fast as the contender takes them, the
// next 64 once all clients have all of them.
//
// Latency to a client is from just before the call that publishes a message to
// the client having read it. To the last client is from just before the first
// message of a burst, or the only one, is published to all clients having read
// all of them.
//
// Memory is the resident size of the server process with the clients connected
// and silent, less what it was before them, by their number: after a forced
// garbage collection that returns what is free (debug.FreeOSMemory), and as it
// was before that. The kernel's memory for sockets is not in it.
//
// Connects are the clients that a second brings, 64 handshakes under way at a
// time.
//
// Echo: every client sends a message, waits for its return and sends the next.
//
// The load generator needs CPU as well. Where the column "load" comes near to
// 100 % of a core for each of its threads, it is what bounds the deliveries a
// second, and the contender could do more; the CPU figures hold all the same.
// On a machine of two cores the latencies and rates of a contender that keeps
// both busy suffer from the load generator too.
package main
