// The types of realtime.js and its documentation.

/** How to connect. Every option has a default. */
export interface Options {
	/**
	 * The topics to ask for, in the URL as `?topic=a&topic=b`. The hub's OnConnect
	 * and OnSubscribe decide which of them the page gets. `Connection.subscribe`
	 * adds others.
	 */
	topics?: readonly string[];

	/**
	 * The transports to use, in the order of preference. The default is
	 * `["websocket", "eventsource"]`. After two failed attempts the connection
	 * tries the next transport, and after the last one the first again. A
	 * transport that has worked before gets six attempts.
	 */
	transports?: readonly Transport[];

	/**
	 * The id of the last event that the page got: the `lastEventId` of an earlier
	 * connection. The new one resumes there. Or a position that the server gave to
	 * the page beside the state that it shows, or "oldest" for all events that the
	 * hub keeps. Latest values and members from before an id don't come again; with
	 * "oldest" they do.
	 */
	lastEventId?: string | null;

	/**
	 * Bounds of the time between attempts, in milliseconds. The defaults are 500
	 * and 30000. The time is random, between min and a limit. The limit begins at
	 * four times min, doubles with each failed attempt and never exceeds max. A
	 * connection that lasted 5 s resets it.
	 */
	backoff?: { min?: number; max?: number };

	/** Whether an event stream from another site sends that site's cookies. A WebSocket always does. */
	withCredentials?: boolean;

	/**
	 * Whether the tabs of a site have one connection together. Each keeps its own
	 * topics and listeners. The tab that has the connection may be closed at any
	 * moment: another one connects, and nothing is lost or doubled. So HTTP/1.1's
	 * limit of six connections doesn't matter.
	 *
	 * Tabs share if they connect to the same URL. If the URL is a function, they
	 * share if its source is the same. A string instead of true is a name that they
	 * share by, whatever their URLs.
	 *
	 * Tabs share what the hub knows of a client. So `id` is empty: Event.Except
	 * would pass over all of them. All tabs get the messages that the hub sends to
	 * the client alone. Their topics together may be 100. Further tabs have a
	 * connection of their own. So has each tab if the hub has no History, and where
	 * the browser has no Web Locks (they need https or localhost) or lets the page
	 * keep nothing.
	 */
	shared?: boolean | string;
}

export type Transport = "websocket" | "eventsource";

/** An event from the hub. */
export interface Message {
	/** The event's position in the hub's history. Empty on a hub without History, and for a latest value that a new client gets. */
	readonly id: string;
	/** The topic that the event was published to. Empty if it was sent to all clients, or to this one alone. */
	readonly topic: string;
	/** The event's name; "message" if it has none. */
	readonly event: string;
	/** The event's Key, or the member's of an event of presence; empty if it has none. */
	readonly key: string;
	/** Whether the latest value of key is taken away, or the member has left. */
	readonly gone: boolean;
	/** Text, or the bytes of a Binary event. */
	readonly data: string | Uint8Array;
	/** Returns data parsed as JSON, or throws a SyntaxError. Nothing checks that it is a T. */
	json<T = any>(): T;
}

/** The event that reports a lost or ended connection. */
export interface ConnectionCloseEvent extends Event {
	/**
	 * The close code (RFC 6455 §7.4), also of an event stream: the hub's, 1000 after
	 * `close`, or 1006 if the connection broke. 4000 and an HTTP status, such as
	 * 4401, means that the hub refused the page with that status.
	 */
	readonly code: number;
	/** The reason that the hub gave, or the error of a URL's function; empty if there is none. */
	readonly reason: string;
	/** Whether the Connection has ended: no events follow. Otherwise it reconnects by itself. */
	readonly final: boolean;
}

/** The event that reports that the hub has refused a topic. */
export interface ConnectionRefusedEvent extends Event {
	readonly topic: string;
	/** 4000 and an HTTP status, such as 4403. */
	readonly code: number;
	/** The reason that the hub gave; empty if there is none. */
	readonly reason: string;
	/** Whether the Connection has given the topic up. Otherwise it tries again. */
	readonly final: boolean;
}

/** Who is in a topic: the data of each member, by its key. */
export interface Members<T> extends ReadonlyMap<string, T> {
	/** Stops following the topic. The members stay as they are. */
	stop(): void;
}

/** The event that reports that events for the page may be lost. */
export interface ConnectionResetEvent extends Event {
	/** The topic whose events may be lost; empty: of all topics. */
	readonly topic: string;
}

export interface ConnectionEventMap {
	/** The hub has accepted the page, for the first time or again. */
	open: Event;
	/**
	 * An open connection is lost, or the hub has refused the page, or the function
	 * for the URL has failed, or the Connection has ended: see `final`. Other
	 * failed attempts are not reported.
	 */
	close: ConnectionCloseEvent;
	/**
	 * Events for the page may be lost: the hub's History can't replay them. The
	 * page should load again what it shows. A reset comes before any later
	 * event. Mostly it follows an `open`. Where several nodes share a history, it
	 * also comes when the hub notices that the history has lost events. On a hub
	 * without History every `open` after the first is followed by a reset. A reset
	 * with a topic is about that topic alone: the page subscribed it, or had the
	 * server do so, after the connection was open.
	 */
	reset: ConnectionResetEvent;
	/**
	 * The hub's OnSubscribe has refused a topic. The same codes are final as for a
	 * close. After any other code the Connection asks for the topic again, not
	 * before the time that the hub may have told.
	 */
	refused: ConnectionRefusedEvent;
}

/**
 * A hub's URL, which may be relative to the page, or a function that returns it.
 * The function is asked before each attempt, so it can add a fresh token. An error
 * of it counts as a failed attempt and is reported by a close event.
 */
export type Url = string | URL | (() => string | URL | Promise<string | URL>);

/**
 * Connects to the hub at url. It throws an error for an invalid URL or option.
 * Later problems are reported by events. Add listeners before the caller next
 * awaits something: then they get every event.
 */
export function connect(url: Url, options?: Options): Connection;

/**
 * A connection to a hub. It reconnects by itself and resumes after the last
 * event that it got, on the topics that it asks for, and on others that the server
 * subscribes again within 10 s. Listeners of `on`, `onTopic` and `onAny` get each
 * event once and in order, whatever its name. Of events with a Key, a newer one may
 * replace an older one. The events open, close, reset and refused report on the
 * connection itself. addEventListener listens to them, and `on` doesn't.
 *
 * A lost connection reconnects after a while: see `Options.backoff`. It
 * reconnects at once when the page is shown again or the network is back. After
 * the close codes 1001 and 1012 (the server stops or restarts) the first attempt
 * comes at a random time, up to 10 times min. After 1013 (try again later) it
 * waits for at least 10 times min. An event stream first reconnects after the
 * time that the server set with "retry".
 *
 * Some networks lose a connection without an end. A hub therefore sends
 * something at each of its PingIntervals, 54 s by default. If nothing has come
 * in two of them, the connection counts as lost, with the code 1006. Late timers
 * of a page in the background don't matter. A single message that takes longer
 * to arrive does, so the limit doubles each time until a heartbeat comes. A hub
 * whose PingInterval is negative isn't watched.
 *
 * A page in the background may be suspended, and lose its connection unnoticed. If its
 * timers stood still for 30 s, it asks the hub for an answer when it is shown again. If
 * nothing comes within 5 s, the connection counts as lost. An event stream can't ask.
 *
 * A hub tells why it refuses or closes a page, and whether that is final. A final
 * close ends the Connection: 1000, 1008 (policy violation), and what Refuse and
 * Client.Close mean by the HTTP statuses 200 to 499, as the codes 4200 to 4499. But
 * 4408, 4425 and 4429 are not final: time will help. After every other code it
 * reconnects, not before the time that the hub may have told. To end it after
 * another code, call `close` in a listener of close. A refusal or close by a proxy
 * or a middleware looks to a page like a server that is down, whatever the code. So
 * the page keeps trying.
 *
 * A page that the user has left, and that the browser keeps for the way back, is
 * disconnected. When it is shown again it reconnects at once and resumes.
 *
 * Each listener may call close and reconnect.
 */
export class Connection extends EventTarget {
	constructor(url: Url, options?: Options);

	/** "connecting" also while it waits before the next attempt. "closed" is final. */
	readonly state: "connecting" | "open" | "closed";
	/**
	 * The client's id on the hub, for a request that says whose action it is, so
	 * that Event.Except can pass over this page. It changes with each connection.
	 * Empty while not open, and if the tabs share the connection.
	 */
	readonly id: string;
	/** The transport that is connected or is tried next. */
	readonly transport: Transport;
	/**
	 * The id of the last event that it got, or the position that the hub sent. Empty
	 * on a hub without History. If it ends in "~", it tells nothing about topics that
	 * the server subscribed by itself after the connection was open: they may begin
	 * with a reset when the page is back. So it is in the first 10 s of each connection.
	 */
	readonly lastEventId: string;
	/** The topics it asks for: those of the options, and those that `subscribe` has added. */
	readonly topics: string[];

	/**
	 * Calls listener with each event of that name. Events without a name have
	 * the name "message". The returned function removes the listener. Listeners
	 * are called in the order in which they were added. An error that one
	 * throws is reported as uncaught, and the others are still called.
	 */
	on(event: string, listener: (message: Message) => void): () => void;
	/** Calls listener with each event of that topic; see `on`. */
	onTopic(topic: string, listener: (message: Message) => void): () => void;
	/** Calls listener with each event; see `on`. */
	onAny(listener: (message: Message) => void): () => void;

	/**
	 * Adds a topic, and calls listener with each of its events; see `on`. The hub's
	 * OnSubscribe decides: see the event refused. The topic begins as for a new
	 * client, with the newest event of each Key. From then on nothing is lost and
	 * nothing comes twice, or a reset with the topic comes first. If the topic is
	 * there already, listener gets the events from now on.
	 *
	 * Over a WebSocket this is a message to the hub. Over an event stream, and if
	 * tabs share the connection, the page makes another one, which resumes. Over an
	 * event stream calls within 100 ms do so once. If the hub has no History, a reset
	 * follows. While not connected, subscribe counts for the next connection.
	 *
	 * The returned function removes the listener. When it removes the last listener
	 * that subscribe has added to the topic, it leaves the topic, unless that is one
	 * of the options.
	 */
	subscribe(topic: string, listener: (message: Message) => void): () => void;
	/**
	 * Leaves a topic, and removes the listeners that `subscribe` has added to it.
	 * No listener gets its events any more. A topic that the server has subscribed
	 * by itself stays subscribed there.
	 */
	unsubscribe(topic: string): void;
	/**
	 * Follows who is in a topic, as the server's Client.Appear shows it. The topic
	 * is one of the page's. The map changes with each event, and then changed is
	 * called with it. A reset empties the map, and the hub then sends all members
	 * again. The map is also emptied when the page leaves the topic.
	 */
	members<T = any>(topic: string, changed?: (members: Members<T>) => void): Members<T>;

	/**
	 * Sends a message to the hub's OnMessage. It throws an InvalidStateError on
	 * an event stream and while the state isn't open. A message that is sent just
	 * before the connection is lost may be lost too.
	 *
	 * Nothing is kept for later, on purpose. Only the page knows whether a message
	 * still makes sense after an outage ("typing" doesn't), in which order with
	 * others, and whether the hub has had it already: no answer came. If a message
	 * must arrive, send it by fetch, which tells how it went.
	 */
	send(data: string | ArrayBufferLike | Blob | ArrayBufferView): void;

	/** Ends the Connection at once. Listeners of close are called before it returns; no others are called any more. */
	close(): void;

	/** Reconnects without waiting and resumes after the last event. It does nothing once the Connection has ended. */
	reconnect(): void;

	addEventListener<K extends keyof ConnectionEventMap>(
		type: K,
		listener: (this: Connection, event: ConnectionEventMap[K]) => any,
		options?: boolean | AddEventListenerOptions,
	): void;
	addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
	removeEventListener<K extends keyof ConnectionEventMap>(
		type: K,
		listener: (this: Connection, event: ConnectionEventMap[K]) => any,
		options?: boolean | EventListenerOptions,
	): void;
	removeEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions): void;
}
