// A client of the Go package realtime for web pages. realtime.d.ts documents it.
// How it works, and why, stands in script.go: comments would be half of this file.

const protocol = "realtime.v1";

// In milliseconds:
const openTimeout = 15_000;  // for an answer
const retryTimeout = 30_000; // and where the browser waits first
const steady = 5_000;        // a good connection lasts so long
const asleep = 90_000;       // the computer slept if a pulse is so late
const pulse = 10_000;
const lastLook = 1_000;      // before a silent hub counts as lost
const joinTimeout = 1_000;   // before the next tab may join
const askAfter = 100;        // that the hub has told all

export function connect(url, options) {
	return new Connection(url, options);
}

export class Connection extends EventTarget {
	#url;
	#topics;
	#transports;
	#min;
	#max;
	#withCredentials;

	#state = "connecting";
	#id = "";
	#lastEventId;
	#listeners = new Set();

	#link = null;  // a WebSocket, an EventSource or what #followed returns
	#openedAt = 0; // zero: it isn't
	#from = "";    // the id behind which it continues
	#all = [];     // its topics
	#transport = 0; // index
	#waiting = false; // for the next attempt
	#notBefore = 0;
	#timer;
	#interval = 0; // of the hub's heartbeats
	#missed = 0;   // of those
	#patience = 2; // so many may be missed
	#wasOpen = false;
	#failures = 0; // attempts in a row without a lasting connection
	#tries = 0;    // failed ones of #transport in a row
	#worked = new Set(); // transports
	#pulse;
	#checkedAt = Date.now();

	// Of tabs that share one:
	#name; // of their lock and channel
	#me = Math.random();
	#channel = null;
	#abort;
	#leads = null; // releases the lock
	#joins = null; // the same for joining; true: it waits for that
	#inSync = false; // it has led or followed
	#asking = 0;
	#tabs = new Map(); // topics of the others
	#unsent = []; // for the leader's next link

	constructor(url, {topics = [], transports = ["websocket", "eventsource"], lastEventId = "", backoff = {}, withCredentials = false, shared = false} = {}) {
		super();
		this.#url = typeof url === "function" ? url : resolve(url);
		if (typeof topics === "string") throw new TypeError("realtime: topics is an array, not a string");
		this.#topics = [...topics];
		this.#transports = [...transports];
		if (!this.#transports.length || !this.#transports.every((t) => t === "websocket" || t === "eventsource")) {
			throw new TypeError(`realtime: transports can't be ${JSON.stringify(transports)}`);
		}
		this.#lastEventId = lastEventId;
		({min: this.#min = 500, max: this.#max = 30_000} = backoff);
		this.#withCredentials = withCredentials;
		if (shared && globalThis.navigator?.locks) this.#name = `realtime ${shared === true ? this.#url : shared}`;
		this.#watchPage("addEventListener");
		this.#pulse = setInterval(this.#check, pulse);
		this.#enter();
	}

	get state() { return this.#state; }
	get id() { return this.#id; }
	get transport() { return this.#link?.transport ?? this.#transports[this.#transport]; }
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
		if (this.transport !== "websocket") throw new DOMException("realtime: an event stream sends nothing", "InvalidStateError");
		if (!this.#pass(data)) throw new DOMException("realtime: not connected", "InvalidStateError");
	}

	#pass(data) {
		const link = this.#link;
		if (this.#leads && this.#state === "open" && !this.#openedAt) return this.#unsent.push(data);
		if (!this.#openedAt || link.readyState !== 1) return false;
		link.send(data);
		return true;
	}

	close() {
		this.#end(1000, "");
	}

	reconnect() {
		if (this.#state === "closed") return;
		this.#drop();
		this.#connect();
		this.#broken();
	}

	// ---- Attempts

	#connect() {
		this.#waiting = false;
		if (this.#channel && !this.#leads && !this.#joins?.call) {
			this.#link = this.#followed();
			this.#expect(openTimeout);
			this.#post({who: true});
			return;
		}
		if (typeof this.#url !== "function") return this.#open(this.#url);
		const asked = this.#link = {close() {}};
		const current = (f) => (v) => { if (asked === this.#link) f(v); };
		this.#expect(openTimeout);
		(async () => resolve(await this.#url()))().then(
			current((url) => this.#open(url)),
			current((error) => this.#lost({reason: String(error)}, true)),
		);
	}

	#open(base) {
		const url = new URL(base);
		const query = url.searchParams;
		this.#from ||= this.#lastEventId;
		this.#all = [...new Set([this.#topics, ...this.#tabs.values()].flat())];
		for (const topic of this.#all) query.append("topic", topic);
		if (this.#from) query.set("lastEventId", this.#from);
		let link;
		if (this.transport === "websocket") {
			url.protocol = url.protocol.replace("http", "ws");
			link = new WebSocket(url, protocol);
			link.onclose = (event) => { if (link === this.#link) this.#lost(event); };
		} else {
			query.set("protocol", protocol);
			link = new EventSource(url, {withCredentials: this.#withCredentials});
			link.onerror = () => { if (link === this.#link) this.#failed(); };
		}
		link.onmessage = ({data}) => { if (link === this.#link) this.#receive(data); };
		this.#link = link;
		this.#expect(openTimeout);
	}

	#failed() {
		if (!this.#openedAt || this.#link.readyState === 2 || typeof this.#url === "function") return this.#lost({});
		this.#count(true);
		this.#openedAt = 0;
		this.#waiting = true;
		this.#expect(retryTimeout);
		this.#broken();
	}

	#expect(time) {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => this.#lost({}), time);
	}

	#opened() {
		clearTimeout(this.#timer);
		this.#waiting = false;
		this.#openedAt = Date.now();
		for (const data of this.#unsent.splice(0)) this.#link.send(data);
		if (this.#state === "open") return; // only the link is new
		this.#state = "open";
		// Without an id the hub can't know that this client reconnects.
		const missed = this.#wasOpen && !this.#lastEventId;
		this.#wasOpen = true;
		const link = this.#link;
		this.#tell("open");
		if (missed && link === this.#link) this.#tell("reset", {topic: ""});
	}

	#lost({code = 1006, reason = "", final = code === 1000 || code === 1008, retry = 0}, askedInVain) {
		if (this.#link.follows) return this.#lead({steal: true}); // from a tab that is stuck
		if (final) return this.#end(code, reason);
		if (askedInVain) this.#failures++; // the transport isn't to blame
		else this.#count(this.#openedAt || code !== 1006);
		this.#drop();
		this.#joined();
		this.#waiting = true;
		this.#notBefore = Date.now() + retry;
		this.#timer = setTimeout(() => this.#connect(), Math.max(retry, this.#delay(code)));
		this.#broken(code, reason, reason || code !== 1006);
	}

	#broken(code = 1006, reason = "", always) {
		if (this.#state !== "open" && !always) return;
		this.#state = "connecting";
		this.#unsent = [];
		if (this.#leads) this.#post({lost: {code, reason}});
		this.#tell("close", {code, reason, final: false});
	}

	#count(worked) {
		const lasted = this.#openedAt && Date.now() - this.#openedAt >= steady;
		this.#failures = lasted ? 1 : this.#failures + 1;
		if (worked) {
			this.#worked.add(this.#transport);
			this.#tries = 0;
		} else if (++this.#tries >= (this.#worked.has(this.#transport) ? 6 : 2)) {
			this.#transport = (this.#transport + 1) % this.#transports.length;
			this.#tries = 0;
		}
	}

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
		this.#from = this.#id = "";
		link?.close(1000);
	}

	#end(code, reason) {
		if (this.#state === "closed") return;
		this.#leave();
		this.#state = "closed";
		clearInterval(this.#pulse);
		this.#watchPage("removeEventListener");
		this.#tell("close", {code, reason, final: true});
	}

	// ---- Tabs that share a link

	#enter() {
		if (this.#name) {
			this.#channel = new BroadcastChannel(this.#name);
			this.#channel.onmessage = ({data}) => this.#hear(data);
			this.#abort = new AbortController();
			this.#lead({signal: this.#abort.signal});
		}
		this.#connect();
	}

	#leave() {
		this.#drop();
		this.#post({bye: true});
		this.#joined();
		this.#leads?.();
		this.#abort?.abort();
		this.#channel?.close();
		this.#channel = this.#leads = null;
		this.#inSync = false;
		this.#tabs.clear();
	}

	#post(message) {
		this.#channel?.postMessage({tab: this.#me, ...message});
	}

	#lead(options) {
		const channel = this.#channel;
		navigator.locks.request(this.#name, options, () => new Promise((release) => {
			if (channel !== this.#channel) return release();
			this.#leads = release;
			this.#joined();
			if (this.#openedAt && !this.#link.follows) this.#announce();
			else this.reconnect();
		})).catch(() => {
			if (channel !== this.#channel) return;
			if (this.#leads) this.#lead({signal: this.#abort.signal}); // stolen
			else this.#channel = null; // a frame without locks
			this.#leads = null;
			this.reconnect();
		});
	}

	#announce(from = this.#from) {
		this.#inSync = true;
		if (this.#openedAt) this.#post({open: {from, topics: this.#all, transport: this.transport}});
		else if (this.#state !== "open") this.#post({lost: {}});
	}

	#hear({tab, who, want, bye, send, open, lost, text, after}) {
		const link = this.#link;
		if (this.#leads) {
			if (who) this.#announce();
			if (want) this.#admit(tab, want);
			if (bye) this.#tabs.delete(tab);
			if (send !== undefined && this.transport === "websocket") this.#pass(send);
		} else if (open && link) {
			this.#follow(tab, open);
		} else if (lost && link?.follows) {
			clearTimeout(this.#timer);
			this.#openedAt = 0;
			this.#broken(lost.code, lost.reason);
		} else if (text && link?.leader === tab && this.#openedAt) {
			const last = this.#lastEventId;
			if (reaches(after, last) || !reaches(last, after)) this.#receive(text);
			else this.#follow(tab, {...link, from: after, topics: this.#all}); // posts are lost
		}
	}

	#admit(tab, {topics, id}) {
		const from = this.#from;
		const reached = reaches(from, id);
		const isNew = topics.some((t) => !this.#all.includes(t));
		if (!this.#openedAt || !(reached || reaches(id, from)) || (isNew && this.#all.length + topics.length > 100)) return;
		this.#tabs.set(tab, topics);
		if (reached && !isNew) return this.#announce();
		this.#drop();
		this.#from = reached ? from : id;
		this.#connect();
	}

	#followed() {
		return {follows: true, readyState: 1, send: (send) => this.#post({send}), close() {}};
	}

	#follow(leader, {from, topics, transport}) {
		const last = this.#lastEventId;
		const follows = this.#link.follows;
		if (follows && !this.#openedAt) clearTimeout(this.#timer);
		const reached = reaches(from, last);
		if (follows && !(this.#inSync && (reached || reaches(last, from)))) {
			this.#join();
		} else if (reached && this.#topics.every((t) => topics.includes(t))) {
			if (!follows) {
				this.#drop();
				this.#joined();
				this.#link = this.#followed();
			}
			Object.assign(this.#link, {leader, transport});
			this.#all = topics;
			this.#inSync = true;
			if (this.#openedAt) return;
			this.#opened();
			if (this.#interval && this.#link?.leader === leader) this.#watch();
		} else {
			if (follows) {
				this.#openedAt = 0;
				this.#expect(openTimeout);
			}
			this.#ask();
		}
	}

	#ask() {
		this.#asking = 0;
		if (this.#lastEventId) this.#post({want: {topics: this.#topics, id: this.#lastEventId}});
	}

	#join() {
		if (this.#joins) return;
		this.#joins = true;
		navigator.locks.request(`${this.#name} join`, {signal: this.#abort.signal}, () => new Promise((release) => {
			this.#joins = release;
			if (this.#leads || !this.#link?.follows) return this.#joined();
			setTimeout(release, joinTimeout);
			this.#drop();
			this.#connect();
		})).catch(() => {});
	}

	#joined() {
		clearTimeout(this.#asking);
		this.#asking = 0;
		this.#joins?.call?.();
		this.#joins = null;
	}

	// ---- What becomes of the page

	#watchPage(add) {
		for (const type of ["online", "pagehide", "pageshow"]) globalThis[add]?.(type, this.#check);
		globalThis.document?.[add]("visibilitychange", this.#check);
	}

	#check = (event) => {
		const now = Date.now();
		const slept = now - this.#checkedAt > asleep;
		this.#checkedAt = now;
		const due = this.#waiting && now >= this.#notBefore;
		switch (event?.type) {
			case "pagehide": return event.persisted ? this.#leave() : this.#post({bye: true});
			case "pageshow":
				if (!event.persisted) return;
				this.#enter();
				return this.#broken();
			case "online":
				if (due || (!this.#waiting && this.#lastEventId)) this.reconnect();
				return;
		}
		if (slept || (due && event && document.visibilityState === "visible")) this.reconnect();
	};

	#watch() {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => {
			if (++this.#missed <= this.#patience) return this.#watch();
			this.#patience = Math.min(2 * this.#patience, 64);
			this.#lost({});
		}, this.#missed < this.#patience ? this.#interval : lastLook);
	}

	// ---- Events

	#receive(text) {
		const {id = "", topic = "", event = "message", key = "", gone = false, data, encoding, reset, interval, client, close} = JSON.parse(text);
		if (close) return this.#lost(close);
		const link = this.#link;
		const begins = !this.#openedAt || (id && !this.#from);
		this.#missed = 0;
		if (client && !this.#channel) this.#id = client;
		if (!this.#openedAt) this.#opened();
		if (link !== this.#link) return;
		if (this.#leads) {
			if (begins) this.#announce(this.#from || id);
			this.#post({text, after: this.#from});
		}
		if (id) this.#from = id;
		if (interval) {
			if (Date.now() - this.#openedAt > interval / 2) this.#patience = 2;
			this.#interval = interval;
			this.#watch();
		}
		const had = this.#channel && reaches(id, this.#lastEventId);
		if ((reset && !topic) || (id && !had)) this.#lastEventId = id;
		if (id && this.#joins?.call) this.#asking ||= setTimeout(() => this.#ask(), askAfter);
		if (this.#all.includes(topic) && !this.#topics.includes(topic)) return; // another tab's
		if (reset) this.#tell("reset", {topic});
		else if (data !== undefined && !had) {
			this.#hand(Object.assign(new Message(), {id, topic, event, key, gone, data: encoding === "base64" ? bytes(data) : data}));
		}
	}

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

	// tell comes last, because a listener may call close or reconnect.
	#tell(type, fields) {
		this.dispatchEvent(Object.assign(new Event(type), fields));
	}
}

class Message {
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

// reaches reports whether the id b is a or comes after it.
function reaches(a, b) {
	const [history, number] = a.split("-");
	const [other, limit] = b.split("-");
	return history === other && parseInt(number) <= parseInt(limit) && !/-local/.test(a + b);
}

function bytes(base64) {
	return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}
