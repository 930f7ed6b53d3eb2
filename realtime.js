// A client of the Go package realtime for web pages. Its connection to a hub
// reconnects by itself. With the hub's History no events are lost then.
// It has no dependencies. Its types and its documentation are in realtime.d.ts.
//
//	import { connect } from "/realtime.js";
//
//	const live = connect("/live", { topics: ["prices"] });
//	live.on("price", (event) => show(event.json()));
//	live.addEventListener("reset", () => loadEverything());

const protocol = "realtime.v1"; // the envelope that events come in

const openTimeout = 15_000;  // milliseconds to wait for an answer to an attempt
const retryTimeout = 30_000; // the same where the browser waits before its attempt
const steady = 5_000;        // a connection that lasted this long counts as a good one
const asleep = 90_000;       // the computer slept if the timer is this late
const pulse = 10_000;        // the timer's interval
const lastLook = 1_000;      // before a silent hub counts as lost

export function connect(url, options) {
	return new Connection(url, options);
}

export class Connection extends EventTarget {
	#url; // or a function that returns one
	#topics;
	#transports;
	#min;
	#max;
	#withCredentials;

	#state = "connecting"; // as it was told
	#id = "";
	#lastEventId;
	#listeners = new Set(); // {event, topic, listener}

	#link = null;        // the current WebSocket or EventSource: others are ignored
	#openedAt = 0;       // when the link brought its first object; zero: it hasn't
	#transport = 0;      // the index of the link's kind
	#waiting = false;    // the next attempt has not begun
	#notBefore = 0;      // when the hub lets it begin
	#timer;              // for the next attempt, for an answer to this one, or for what an open link should bring
	#missed = 0;         // intervals of the hub in which nothing came
	#patience = 2;       // how many may be missed
	#wasOpen = false;    // some link has been open
	#failures = 0;       // attempts in a row without a lasting connection: backoff grows with them
	#tries = 0;          // failed attempts of #transport in a row
	#worked = new Set(); // indices of transports that have worked

	#pulse;
	#checkedAt = Date.now();

	constructor(url, {topics = [], transports = ["websocket", "eventsource"], lastEventId = "", backoff = {}, withCredentials = false} = {}) {
		super();
		this.#url = typeof url === "function" ? url : resolve(url);
		if (typeof topics === "string") throw new TypeError("realtime: topics is an array of strings, not one string");
		this.#topics = [...topics];
		this.#transports = [...transports];
		if (this.#transports.length === 0 || !this.#transports.every((t) => t === "websocket" || t === "eventsource")) {
			throw new TypeError(`realtime: transports are "websocket" and "eventsource", not ${JSON.stringify(transports)}`);
		}
		this.#lastEventId = lastEventId;
		({min: this.#min = 500, max: this.#max = 30_000} = backoff);
		this.#withCredentials = withCredentials;
		this.#watchPage("addEventListener");
		this.#pulse = setInterval(this.#check, pulse);
		this.#connect();
	}

	get state() { return this.#state; }
	get id() { return this.#id; }
	get transport() { return this.#transports[this.#transport]; }
	get lastEventId() { return this.#lastEventId; }
	get topics() { return [...this.#topics]; }

	on(event, listener) { return this.#listen({event, listener}); }
	onTopic(topic, listener) { return this.#listen({topic, listener}); }
	onAny(listener) { return this.#listen({listener}); }

	#listen(entry) {
		if (typeof entry.listener !== "function") throw new TypeError("realtime: a listener is a function");
		this.#listeners.add(entry);
		return () => { this.#listeners.delete(entry); };
	}

	send(data) {
		if (this.transport !== "websocket") throw new DOMException("realtime: nothing can be sent over an event stream", "InvalidStateError");
		if (!this.#openedAt || this.#link.readyState !== WebSocket.OPEN) throw new DOMException("realtime: not connected", "InvalidStateError");
		this.#link.send(data);
	}

	close() {
		this.#end(1000, "");
	}

	reconnect() {
		if (this.#state === "closed") return;
		this.#drop();
		this.#connect();
		this.#broken(1006, "");
	}

	// ---- Attempts

	#connect() {
		this.#waiting = false;
		if (typeof this.#url !== "function") {
			this.#open(this.#url);
			return;
		}
		const asked = this.#link = {close() {}}; // until the URL is known
		const current = (f) => (v) => { if (asked === this.#link) f(v); };
		this.#expect(openTimeout);
		(async () => resolve(await this.#url()))().then(
			current((url) => this.#open(url)),
			current((error) => this.#lost({reason: String(error)}, true)),
		);
	}

	#open(base) {
		const url = new URL(base);
		for (const topic of this.#topics) url.searchParams.append("topic", topic);
		if (this.#lastEventId) url.searchParams.set("lastEventId", this.#lastEventId);
		this.#link = this.transport === "websocket" ? this.#webSocket(url) : this.#eventSource(url);
		this.#expect(openTimeout);
	}

	#webSocket(url) {
		url.protocol = url.protocol.replace("http", "ws");
		const ws = new WebSocket(url, protocol);
		ws.onmessage = ({data}) => { if (ws === this.#link) this.#receive(data); };
		ws.onclose = (event) => { if (ws === this.#link) this.#lost(event); };
		return ws;
	}

	// An EventSource reconnects by itself, after the time that the server set
	// with "retry". The page can't read that time, so the browser gets one
	// attempt. Then the EventSource is replaced: it gives up after an answer
	// other than 200, and never waits longer however often it fails.
	#eventSource(url) {
		url.searchParams.set("protocol", protocol);
		const source = new EventSource(url, {withCredentials: this.#withCredentials});
		source.onmessage = ({data}) => { if (source === this.#link) this.#receive(data); };
		source.onerror = () => {
			if (source !== this.#link) return;
			if (!this.#openedAt || source.readyState === EventSource.CLOSED) {
				this.#lost({});
				return;
			}
			this.#count(true);
			this.#openedAt = 0;
			this.#waiting = true;
			this.#expect(retryTimeout);
			this.#broken(1006, "");
		};
		return source;
	}

	// expect bounds the time until the link opens. Some proxies neither pass a
	// handshake on nor refuse it.
	#expect(time) {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => this.#lost({}), time);
	}

	// A link is open when its first object has come. The hub sends one at once,
	// except to a client that it refuses. Some proxies hold all back.
	#opened() {
		clearTimeout(this.#timer);
		this.#waiting = false;
		this.#openedAt = Date.now();
		this.#state = "open";
		// Without an id the hub can't know that this client reconnects.
		const missed = this.#wasOpen && !this.#lastEventId;
		this.#wasOpen = true;
		const link = this.#link;
		this.#tell("open");
		if (missed && link === this.#link) this.#tell("reset");
	}

	// lost handles the end of the link, or an attempt that failed. The latter is
	// told only if there is something to tell.
	#lost({code = 1006, reason = "", final = code === 1000 || code === 1008, retry = 0}, askedInVain) {
		if (final) {
			this.#end(code, reason);
			return;
		}
		if (askedInVain) this.#failures++; // the transport isn't to blame
		else this.#count(this.#openedAt > 0 || code !== 1006);
		this.#drop();
		this.#waiting = true;
		this.#notBefore = Date.now() + retry;
		this.#timer = setTimeout(() => this.#connect(), Math.max(retry, this.#delay(code)));
		this.#broken(code, reason, reason || code !== 1006);
	}

	// broken tells that the connection isn't open any more.
	#broken(code, reason, always) {
		if (this.#state !== "open" && !always) return;
		this.#state = "connecting";
		this.#tell("close", {code, reason, final: false});
	}

	// count records how the link did. It changes the transport after two failed
	// attempts. A transport that has worked gets six, as probably the server is
	// down.
	#count(worked) {
		const lasted = this.#openedAt > 0 && Date.now() - this.#openedAt >= steady;
		this.#failures = lasted ? 1 : this.#failures + 1;
		if (worked) {
			this.#worked.add(this.#transport);
			this.#tries = 0;
		} else if (++this.#tries >= (this.#worked.has(this.#transport) ? 6 : 2)) {
			this.#transport = (this.#transport + 1) % this.#transports.length;
			this.#tries = 0;
		}
	}

	// delay returns a random time to wait, so that clients that lost a server
	// together don't reconnect together. 1001 and 1012 say that the server stops
	// or restarts. All its clients then reconnect, so the first delay is longer.
	// 1013 asks to try later.
	#delay(code) {
		let from = this.#min;
		let to = this.#min * 2 ** Math.min(this.#failures + 1, 20);
		if (code === 1001 || code === 1012) to = Math.max(to, 10 * this.#min);
		if (code === 1013) [from, to] = [10 * this.#min, Math.max(to, 20 * this.#min)];
		from = Math.min(from, this.#max);
		to = Math.min(to, this.#max);
		return from + Math.random() * (to - from);
	}

	#drop() {
		clearTimeout(this.#timer);
		const link = this.#link;
		this.#link = null;
		this.#openedAt = 0;
		this.#id = "";
		link?.close(1000);
	}

	#end(code, reason) {
		if (this.#state === "closed") return;
		this.#drop();
		this.#state = "closed";
		clearInterval(this.#pulse);
		this.#watchPage("removeEventListener");
		this.#tell("close", {code, reason, final: true});
	}

	// ---- What becomes of the page, and losses that a browser doesn't report

	#watchPage(add) {
		for (const type of ["online", "pagehide", "pageshow"]) globalThis[add]?.(type, this.#check);
		globalThis.document?.[add]("visibilitychange", this.#check);
	}

	// check runs at each pulse and when something happens to the page. A page
	// that is shown doesn't wait for the next attempt. After a computer's sleep
	// the connection may be dead, and the browser would notice that much later.
	// So may it be when the network is back, perhaps another one. With an id, to
	// reconnect loses nothing. A page that leaves may be kept, but not with an
	// open connection.
	#check = (event) => {
		const now = Date.now();
		const slept = now - this.#checkedAt > asleep;
		this.#checkedAt = now;
		const due = this.#waiting && now >= this.#notBefore;
		switch (event?.type) {
			case "pagehide": if (event.persisted) this.#drop(); return; // else the browser closes it
			case "pageshow": if (event.persisted) this.reconnect(); return;
			case "online": if (due || (!this.#waiting && this.#lastEventId)) this.reconnect(); return;
		}
		if (slept || (due && event && document.visibilityState === "visible")) this.reconnect();
	};

	// watch reconnects when a hub that sends something at each interval is silent
	// for two: some paths swallow bytes and stay open. It counts its own ticks,
	// because those of a throttled or frozen page are late, but don't add up. The
	// last one lets messages be delivered that wait for such a page. A message
	// that takes longer is no reason to reconnect again and again, so each time
	// the patience doubles.
	#watch(interval) {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => {
			if (++this.#missed <= this.#patience) {
				this.#watch(interval);
				return;
			}
			this.#patience = Math.min(2 * this.#patience, 64);
			this.#lost({});
		}, this.#missed < this.#patience ? interval : lastLook);
	}

	// ---- Events

	#receive(text) {
		const {id, topic = "", event = "message", data, encoding, reset, interval, client, close} = JSON.parse(text);
		if (close) {
			this.#lost(close);
			return;
		}
		this.#missed = 0;
		if (client) this.#id = client;
		if (!this.#openedAt) {
			const link = this.#link;
			this.#opened();
			if (link !== this.#link) return;
		}
		if (interval) {
			if (Date.now() - this.#openedAt > interval / 2) this.#patience = 2; // it isn't the link's first
			this.#watch(interval);
		}
		if (id) this.#lastEventId = id; // before the listeners run: they may store it
		if (reset) this.#tell("reset");
		else if (data !== undefined) this.#hand(new Message(id ?? "", topic, event, encoding === "base64" ? bytes(data) : data));
	}

	// hand calls the listeners. If one throws, the error is reported and the
	// others still run.
	#hand(message) {
		for (const entry of [...this.#listeners]) {
			const {event = message.event, topic = message.topic, listener} = entry;
			if (event !== message.event || topic !== message.topic || !this.#listeners.has(entry)) continue;
			try {
				listener(message);
			} catch (error) {
				reportError(error);
			}
		}
	}

	// tell dispatches an event about the connection. Callers call it last,
	// because a listener may call close or reconnect.
	#tell(type, fields) {
		this.dispatchEvent(Object.assign(new Event(type), fields));
	}
}

class Message {
	constructor(id, topic, event, data) {
		this.id = id;
		this.topic = topic;
		this.event = event;
		this.data = data;
	}

	json() {
		return JSON.parse(this.data);
	}
}

function resolve(url) {
	url = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
	url.protocol = url.protocol.replace("ws", "http");
	url.hash = ""; // a WebSocket's URL must not have one
	return url;
}

function bytes(base64) {
	return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}
