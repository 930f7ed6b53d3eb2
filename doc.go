// Package realtime keeps many browsers up to date. An event that is published
// to a [Hub] reaches its WebSocket clients and its event-stream clients alike.
// [NewStream] turns one HTTP response into an event stream (WHATWG HTML §9.2)
// that its handler writes by hand; it belongs to no hub.
//
//	var chat = realtime.NewHub()
//
//	func main() {
//		go chat.Run()
//		chat.CheckOrigin = realtime.SameOrigin
//		chat.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
//			hub.Broadcast <- msg.Data // to everybody, the sender included
//		}
//		http.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
//			realtime.Upgrade(w, r, chat)
//		})
//		log.Fatal(http.ListenAndServe("localhost:8080", nil))
//	}
//
// # Origins
//
// By default every web page in the world may connect: a browser sends your
// visitor's cookies with a WebSocket handshake from any page. A hub that tells
// its clients apart by a cookie must set [Hub.CheckOrigin], or [SetCheckOrigin]
// for all hubs, to [SameOrigin] or to what [AllowOrigins] returns.
//
// # Promises
//
//   - Order: events that one goroutine publishes, by Broadcast, Publish and
//     PublishAll together, reach each client in that order. So do those that it
//     sends to one client. Published events and events sent to one client have
//     no order between them.
//   - Delivery: at most once, to connected clients. With [Hub.History], a
//     client that reconnects with the last id it saw gets every event since, on
//     the topics that OnConnect subscribes, each once and in order. The same
//     holds for topics that it subscribes again within 10 s, as by a message.
//     If it may have lost some, it gets a reset. Of events with a Key it gets
//     the newest.
//   - Latest values: the newest event of each Key stays, and new clients get
//     it, until another replaces it or one that is Gone takes it away.
//     [History] bounds their number. Those that are dropped for that are
//     counted and logged.
//   - Presence: the nodes agree on who is in a topic, and its clients get each
//     change. Members that a node showed leave when that node is gone. See
//     [Client.Appear].
//   - Slow clients: up to 256 messages may wait for a client. One that stays
//     above that for a second, without catching up, is disconnected with
//     [ErrSlowClient], and told if it still reads. It costs nobody else
//     anything. See [Hub.SendBuffer].
//   - Loss is never silent: it is an error, a figure in [Stats], a line in the
//     log, or a reset that the client gets.
//   - Disconnecting: [Hub.Disconnect] closes a topic's clients on all nodes, in
//     order with what is published.
//   - Pages that use [Script] learn why they are refused or closed, and whether
//     another attempt is pointless; see [Subprotocol].
//   - Blocking: the hub waits for no client, handler or Logger. Calls that
//     publish or subscribe wait until the hub accepts them, and with a [Broker]
//     longer; see [Hub.PublishAll] and [Client.Subscribe].
//   - Shutdown: the hub sends all that waits. Then WebSocket clients get close
//     code 1001, and event streams end. When [Hub.Shutdown] has returned nil,
//     nothing of the hub is running.
//
// # Words
//
// A client is one connection of a hub, a WebSocket or an event stream. An event
// goes out, a message comes in. On its way to one client an event is a message
// too, as in RFC 6455. A topic is what others call a room or a channel: the
// clients that have it get what is published to it. A hub with a [Broker] is a
// node, and the broker's engine joins it to other nodes: NATS or Redis.
//
// # Two transports
//
// [Hub.ServeHTTP] serves both at one URL, as the request asks. A WebSocket
// client gets an event's data alone, unless it asks for the [Subprotocol]. An
// event stream has its name and id as well. Plain WebSocket and EventSource
// objects are clients; the JavaScript module of [Script] also reconnects and
// resumes.
//
// # Several processes
//
// A [Broker] joins the hubs of several processes: what is published to one
// reaches the clients of all. The modules natsbroker and redisbroker, beside
// this one, use NATS and Redis. Hubs whose brokers have the same name hear each
// other. Each publisher's events keep their order in a topic. Lost events are
// counted, and clients that reconnect are told. With a [HistoryBroker] all events
// have one order on all nodes, and clients resume on any of them. Connected
// clients are then told, too, if the engine may have lost events.
//
// # Memory and time
//
// An event is encoded and compressed once for each form, not for each client.
// Only a later replay may do it again. On TCP and Unix sockets it is written at
// once, by the goroutine that has it. So is a short event over TLS, on Linux, if
// the client is idle and has acknowledged all before. Elsewhere, and where a
// client reads too slowly, a goroutine writes for that client until nothing
// waits.
//
// A client has one goroutine more, which reads. An idle client on Linux has
// none. It takes about 2 KB in all, on TCP or a Unix socket, and some 10 KB if
// this process ends TLS. Event streams on HTTP/2 stay in their handlers, and
// take over 50 KB. No client has a timer. The hub looks at each once a second,
// so what is due happens at most a second late. Pings and heartbeats come early
// instead.
//
// # Inside
//
// An event's way through a hub:
//
//	Publish, Broadcast ─▶ loop ─▶ shard's inbox ─▶ a frame for each format
//	                      │  ▲                               │
//	                      ▼  │                               ▼
//	            order: history, broker                    outbox ─▶ write(2)
//
// The files, each with its concept:
//
//	realtime.go, hub.go       events, messages, errors; settings and lifetime
//	loop.go, order.go         publishing; where the order of events is decided, for one process
//	relay.go, journal.go      the order with a Broker; with a HistoryBroker
//	broker.go, codec.go       the interfaces of both; what they carry
//	peers.go, ledger.go       a node and the others; how it notices that events are lost
//	interest.go               the topics that a node gets from the others
//	appender.go, trail.go     how events get into the log; whether all nodes read the same one
//	history.go, ids.go        what is kept; the ids of events
//	replay.go                 how a client gets what is kept, in parts
//	latest.go                 Hub.Latest
//	survey.go, carry.go       how a new relay gets latest values; how they stay in the log
//	presence.go               who is in a topic
//	admit.go, goodbye.go      how a request becomes a client; why it is refused or closed
//	client.go, registry.go    a client's life, which gone ends; where the hub finds it
//	serve.go                  its connection and the goroutine that reads it, or its parking
//	topics.go, subscribe.go   a client's topics; how a page joins some by itself
//	disconnect.go             closing a topic's clients, on all nodes
//	listen.go                 hearing what is published, on the server
//	websocket.go              a WebSocket client: its messages, pings and close
//	handshake.go, deflate.go  how it opens; compressed messages
//	wire.go, seat.go          the connection under coder/websocket; its part of a client
//	serve_sse.go              an event-stream client
//	fanout.go                 shards, which hand events to clients
//	event.go, frame.go        an event in each format; the bytes of frames
//	outbox.go, backlog.go     what is sent to a client; whether it is too slow
//	queue.go, drain.go        what waits in an outbox; how it is written
//	outbox_*.go, socket_*.go  what differs by operating system
//	sweep.go                  what is due by time
//	stats.go, log.go          the figures; the lines in the log
//	origin.go, script.go      origin checks; realtime.js, the module for pages
//	sse.go                    Stream: an event stream by hand
//
// CONTRIBUTING.md and the comment above loop in loop.go say what may wait for what.
package realtime
