// The types of realtime.js, and what it promises.

/** How to connect; everything has a default. */
export interface Options {
	/**
	 * The topics to ask for, in the URL as `?topic=a&topic=b`. Where the hub has
	 * an OnConnect, that alone decides which of them the page gets. They stay
	 * the same: for others, close this connection and make another.
	 */
	topics?: readonly string[];

	/**
	 * What to connect over, in the order of preference; by default
	 * `["websocket", "eventsource"]`. After two attempts in vain the next one has
	 * its turn, round and round; one that has worked before gets six.
	 */
	transports?: readonly Transport[];

	/**
	 * The id of the last event that the page has seen, kept from an earlier
	 * connection's `lastEventId`, to go on from there.
	 */
	lastEventId?: string;

	/**
	 * Bounds of the time between attempts, in milliseconds, by default 500 and
	 * 30000. The time is chosen by chance, below a limit that doubles from
	 * four times min with each attempt in vain; a connection that lasted 5 s
	 * starts it over.
	 */
	backoff?: { min?: number; max?: number };

	/** Whether an event stream of another site gets that site's cookies. A WebSocket always does. */
	withCredentials?: boolean;
}

export type Transport = "websocket" | "eventsource";

/** An event that somebody published. */
export interface Message {
	/** Its place in the hub's history; empty without one, and for a latest value that is sent to a newcomer. */
	readonly id: string;
	/** The topic it was published to; empty for what went to all clients, or to this one alone. */
	readonly topic: string;
	/** Its name; "message" if it has none. */
	readonly event: string;
	/** Text, or the bytes of a Binary event. */
	readonly data: string | Uint8Array;
	/** Returns data parsed as JSON, or throws a SyntaxError. */
	json(): any;
}

/** An event that tells of the end of a connection. */
export interface ConnectionCloseEvent extends Event {
	/** The WebSocket's close code (RFC 6455 §7.4); 1006 for an event stream, which has none. */
	readonly code: number;
	/** What the server said, if it did. */
	readonly reason: string;
	/** Whether it is over: nothing comes after it. Otherwise the connection comes back by itself. */
	readonly final: boolean;
}

export interface ConnectionEventMap {
	/** The hub has let the page in, for the first time or again. */
	open: Event;
	/**
	 * An open connection is lost, or the Connection has ended for good: see
	 * `final`. Attempts in between that come to nothing are not told.
	 */
	close: ConnectionCloseEvent;
	/**
	 * The page may have missed events, more than the hub's History could make
	 * up for: load anew what it shows. It comes before any later event. Mostly
	 * it follows an `open`; but where several nodes share a history that has
	 * lost events, it comes as that is noticed. On a hub without History every
	 * return is a reset.
	 */
	reset: Event;
}

/**
 * Connects to the hub at url, which is relative to the page. It throws for a
 * URL or an option that makes no sense; what goes wrong later is told by
 * events. Listeners that are added before the caller next waits miss nothing.
 */
export function connect(url: string | URL, options?: Options): Connection;

/**
 * A connection to a hub that comes back by itself, from the last event it has
 * seen. What is published reaches the listeners of `on`, `onTopic` and `onAny`,
 * each event once and in order, whatever it is called, but for events with a Key,
 * of which a newer one may take an older one's place. Of the connection itself
 * tell the events open, close and reset, to which addEventListener listens.
 *
 * A connection that is lost comes back after a while, see `Options.backoff`, or
 * at once when the page is shown again or the network is back. Close codes 1001
 * and 1012 (the server stops, or restarts) spread the first attempt over 10
 * times min, 1013 (try again later) waits for that long. An event stream first
 * comes back after the time that the server set with "retry".
 *
 * It comes back after every close code but 1000 and 1008 (policy violation),
 * by which a server tells a client that it is done with it: then the
 * Connection ends. To end it for a code of your own (4000–4999), call `close`
 * in a listener of close. A page can't tell a server that refuses it from one
 * that is down, so it keeps asking.
 */
export class Connection extends EventTarget {
	constructor(url: string | URL, options?: Options);

	/** "connecting" also while it waits before the next attempt; "closed" is for good. */
	readonly state: "connecting" | "open" | "closed";
	/** What it is connected over, or tries next. */
	readonly transport: Transport;
	/** The id of the last event that it has seen, or how far the hub's history was; empty without one. */
	readonly lastEventId: string;
	/** The topics it asks for. */
	readonly topics: string[];

	/**
	 * Calls listener with each event of that name, "message" for those without
	 * one. The returned function takes it back. Listeners are called in the
	 * order in which they were added; what one throws is reported as uncaught.
	 */
	on(event: string, listener: (message: Message) => void): () => void;
	/** Calls listener with each event of that topic; see `on`. */
	onTopic(topic: string, listener: (message: Message) => void): () => void;
	/** Calls listener with each event; see `on`. */
	onAny(listener: (message: Message) => void): () => void;

	/**
	 * Sends a message to the hub's OnMessage. It throws an InvalidStateError
	 * where nothing can be sent: not over an event stream, nor while not
	 * connected. What was sent just before a connection is lost may not arrive.
	 */
	send(data: string | ArrayBufferLike | Blob | ArrayBufferView): void;

	/** Leaves, for good and at once: no listener is called any more but those of close, before it returns. */
	close(): void;

	/** Connects anew without waiting, from the last event on; nothing after the end. */
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
