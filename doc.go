// Package realtime keeps many browsers up to date: what is published to a [Hub]
// reaches its WebSocket clients and its event-stream clients alike, and a
// [Stream] writes events to one EventSource by hand.
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
// By default every web page in the world may connect, as if it were yours: a
// browser sends your visitor's cookies along with a WebSocket handshake from
// any page, and asks nobody first. A hub that tells its clients apart by a
// cookie must therefore set [Hub.CheckOrigin], or [SetCheckOrigin] for all
// hubs, to [SameOrigin] or to what [AllowOrigins] returns.
//
// # Promises
//
// Order: what one goroutine publishes, by Broadcast, Publish and PublishAll
// together, reaches each client in that order, and so does what one goroutine
// sends to one client. Between the two there is no order.
//
// Delivery: at most once, to the clients that are connected. With [Hub.History],
// a client that comes back with the last id it saw gets every event since, on
// the topics that OnConnect subscribes, each once and in order, or is told that
// it may have missed some.
//
// Slow clients: up to 256 messages may wait for a client; one that stays above
// that for a second, and doesn't catch up meanwhile, is disconnected with
// [ErrSlowClient]. Its slowness costs nobody else anything. See
// [Hub.SendBuffer].
//
// Loss is never silent: it is an error, a figure in [Stats], a line in the log,
// or a reset that the client gets.
//
// Blocking: only publishers ever wait, and only for the hub to take the event,
// as Subscribe does; with a [Broker] see [Client.Subscribe] and [Hub.PublishAll].
// The hub waits for no client, handler or Logger. Handlers run under no lock and
// on none of the hub's goroutines, so they may call anything, also
// hub.Broadcast <-.
//
// Shutdown: what is queued goes out, WebSocket clients get close code 1001,
// event streams end, and when [Hub.Shutdown] has returned nil nothing of the hub
// is left running.
//
// # Words
//
// A client is one connection of a hub, over WebSocket or as an event stream. An
// event goes out, a message comes in; on its way to one client an event is a
// message too, as RFC 6455 calls it. A topic is what others call a room or a
// channel: whoever has it gets what is published to it.
//
// # Two transports
//
// [Hub.ServeHTTP] serves both at one URL, as the request asks. A WebSocket
// client gets the data of an event and nothing else, unless it asks for the
// [Subprotocol]; an event stream has the event's name and id as well. An event is
// encoded at most once for each of these forms, whatever the number of clients.
// [Script] is a JavaScript module for the browser's side of both: it reconnects
// and resumes. Plain WebSocket and EventSource objects do as well without it.
//
// # Several processes
//
// A [Broker] joins the hubs of several processes: natsbroker and redisbroker,
// modules beside this one, have them on NATS and Redis. What is published to one
// hub reaches the clients of all. Each publisher's events keep their order in a
// topic; what is lost on the way is counted, and told to clients that come back.
// With a [HistoryBroker] all events have one order on all nodes, and clients
// resume on any of them.
//
// # Memory and time
//
// What is published is framed once, and compressed once, for all clients. On
// TCP and Unix sockets it is written at once, by the goroutine that has it;
// elsewhere (TLS, Windows), and where a client takes it too slowly, a goroutine
// writes for that client, until nothing waits any more.
//
// A WebSocket client has one goroutine, which reads, and so has an event stream.
// On Linux an idle one on TCP or a Unix socket has none, and takes about 4.5 KB
// in all, an event stream 2 KB.
//
// No client has a timer: the hub's sweeper looks at each once a second, so that
// what is said to happen after some time happens at most a second later.
//
// # Event streams by hand
//
// [NewStream] turns one HTTP response into an event stream (WHATWG HTML §9.2)
// that its handler writes, for as long as the browser stays. A stream belongs
// to no hub.
package realtime
