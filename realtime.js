// See script.go.

const timeout = 15e3;
const pause = 100;

export function connect(url, options) {
	return new Connection(url, options);
}

export class Connection extends EventTarget {
	#url; #topics; #transports; #options;
	#state = "connecting"; #id = ""; #lastEventId; #listeners = new Set();

	#link; #openedAt; #from = "";
	#tries = 0; #fails = 0; #worked = new Set();
	#due; #timer;
	#interval; #missed; #limit = 2;
	#wasOpen; #doubts; #pulse; #checked = Date.now();

	#known = new Set(); #fresh = new Map();
	#changed = new Set(); #changing;

	#lock; #me = Math.random(); #channel; #abort;
	#leads; #joins; #asks; #synced;
	#tabs = new Map(); #unsent = [];

	constructor(url, options = {}) {
		super();
		const {topics = [], transports = ["websocket", "eventsource"], lastEventId, shared} = this.#options = options;
		this.#url = url.call ? url : resolve(url);
		if (!topics.map || !transports.map || !transports.length || transports.some((name) => !["websocket", "eventsource"].includes(name))) throw new TypeError(`realtime: bad options ${JSON.stringify(options)}`);
		this.#topics = new Map(topics.map((topic) => [topic, false]));
		this.#transports = [...transports];
		this.#lastEventId = lastEventId ?? "";
		if (shared && globalThis.navigator?.locks) this.#lock = `realtime ${shared === true ? this.#url : shared}`;
		this.#watchPage("addEventListener");
		this.#pulse = setInterval(this.#check, 10e3);
		this.#enter();
	}

	get state() { return this.#state; }
	get id() { return this.#openedAt ? this.#id : ""; }
	get transport() { return this.#link?.transport ?? this.#transports[0]; }
	get lastEventId() { return this.#lastEventId; }
	get topics() { return [...this.#topics.keys()]; }

	on(event, listener) { return this.#listen({event, listener}); }
	onTopic(topic, listener) { return this.#listen({topic, listener}); }
	onAny(listener) { return this.#listen({listener}); }

	subscribe(topic, listener) {
		const stop = this.#listen({topic, listener, joins: true});
		if (!this.#topics.has(topic)) {
			this.#topics.set(topic, true);
			this.#fresh.set(topic);
			this.#change(topic);
		}
		return () => {
			stop();
			if (this.#topics.get(topic) && ![...this.#listeners].some((entry) => entry.joins && entry.topic === topic)) this.unsubscribe(topic);
		};
	}

	unsubscribe(topic) {
		this.#fresh.delete(topic);
		if (this.#topics.delete(topic)) this.#change(topic);
		for (const entry of [...this.#listeners]) {
			if (entry.topic === topic && entry.joins) this.#listeners.delete(entry);
			if (entry.topic === topic) this.#call(entry.empty, {topic});
		}
	}

	members(topic, changed) {
		const members = new Map();
		const listener = (event) => {
			if (event.gone) members.delete(event.key);
			else if (event.json) members.set(event.key, event.json().data);
			else if ((event.topic || topic) === topic) members.clear();
			changed?.(members);
		};
		const stop = this.#listen({event: "presence", topic, listener, empty: listener});
		this.addEventListener("reset", listener);
		members.stop = () => {
			stop();
			this.removeEventListener("reset", listener);
		};
		return members;
	}

	#listen(entry) {
		if (!entry.listener?.call) throw new TypeError("realtime: bad listener");
		this.#listeners.add(entry);
		return () => this.#listeners.delete(entry);
	}

	send(data) {
		if (!this.#pass(data)) throw new DOMException("realtime: no open WebSocket", "InvalidStateError");
	}

	#pass(data) {
		if (this.#state !== "open" || this.transport !== "websocket" || this.#link?.readyState > 1) return false;
		if (this.#openedAt) this.#link.send(data);
		else this.#unsent.push(data);
		return true;
	}

	close() {
		this.#end(1000, "");
	}

	reconnect() {
		if (this.#state === "closed") return;
		this.#relink("");
		this.#broken();
	}

	#connect() {
		this.#due = NaN;
		if (this.#channel && !this.#leads && !this.#joins?.call) {
			this.#link = this.#leader();
			this.#expect(timeout);
			return this.#post({who: true});
		}
		if (!this.#url.call) return this.#open(this.#url);
		const link = this.#link = {asks: true};
		this.#expect(timeout);
		(async () => this.#url())().then(resolve).then(
			this.#of(link, this.#open),
			this.#of(link, (error) => this.#lost({reason: String(error)})),
		);
	}

	#of(link, f) {
		return (value) => link === this.#link && f.call(this, value);
	}

	#open(base) {
		this.#link = null;
		const url = new URL(base);
		const query = url.searchParams;
		if (this.#from ||= this.#lastEventId) query.set("lastEventId", this.#from);
		else this.#fresh.clear();
		if (this.#full() || [...this.#tabs.values()].flat().some((topic) => this.#fresh.has(topic))) {
			this.#leave();
			return this.#enter();
		}
		this.#changed.clear();
		for (const topic of this.#wanted()) {
			this.#known.add(topic);
			query.append("topic", topic);
			if (this.#fresh.has(topic)) query.append("new", topic);
		}
		let link;
		try {
			if (this.transport === "websocket") {
				url.protocol = url.protocol.replace("http", "ws");
				link = new WebSocket(url, "realtime.v1");
				link.onclose = this.#of(link, this.#lost);
			} else {
				query.set("protocol", "realtime.v1");
				link = new EventSource(url, this.#options);
				link.onerror = this.#of(link, this.#failed);
			}
		} catch {
			return this.#lost();
		}
		link.has = this.#wanted();
		link.onmessage = this.#of(link, ({data}) => this.#read(data));
		this.#expect(timeout);
		this.#link = link;
	}

	#failed() {
		const link = this.#link;
		if (!this.#openedAt || link.readyState > 1 || this.#url.call || this.#changed.size || link.url.includes("&new=")) return this.#lost();
		this.#count(true);
		this.#openedAt = this.#due = 0;
		this.#expect(30e3);
		this.#broken();
	}

	#expect(time) {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => this.#lost(), time);
	}

	#opened() {
		clearTimeout(this.#timer);
		const link = this.#link;
		if (link.follows && this.#interval) this.#watch();
		this.#due = NaN;
		this.#openedAt = Date.now();
		for (const data of this.#unsent) link.send?.(data);
		this.#unsent = [];
		if (this.#state !== "open") {
			this.#state = "open";
			this.#tell("open");
		}
		if (this.#wasOpen && !this.#lastEventId && link === this.#link) this.#tell("reset", {topic: ""});
		this.#wasOpen = true;
		if (link !== this.#link) return;
		if (this.#changed.size || (link.follows && this.#fresh.size)) this.#change();
		if (!link.follows) this.#begin();
	}

	#lost({code = 1006, reason = "", final, retry = 0} = {}) {
		if (this.#link?.follows) return this.#lead({steal: true});
		if (final) return this.#end(code, reason);
		if (this.#link?.asks) this.#fails++;
		else this.#count(this.#openedAt || code !== 1006);
		this.#drop();
		this.#joined();
		this.#due = Date.now() + retry;
		this.#timer = setTimeout(() => this.#connect(), Math.max(retry, this.#backoff(code)));
		this.#broken(code, reason);
	}

	#broken(code = 1006, reason = "") {
		if (this.#state !== "open" && code === 1006 && !reason) return;
		this.#state = "connecting";
		this.#unsent = [];
		if (this.#leads) this.#post({lost: {code, reason, retry: Math.max(0, this.#due - Date.now()) || 0}});
		this.#tell("close", {code, reason, final: false});
	}

	#count(worked) {
		if (this.#openedAt && Date.now() - this.#openedAt >= 5e3) this.#fails = 0;
		this.#fails++;
		if (worked) {
			this.#worked.add(this.transport);
			this.#tries = 0;
		} else if (++this.#tries >= (this.#worked.has(this.transport) ? 6 : 2)) {
			this.#transports.push(this.#transports.shift());
			this.#tries = 0;
		}
	}

	#backoff(code) {
		const {min = 500, max = 30e3} = this.#options.backoff ?? {};
		const from = Math.min(min * (code === 1013 ? 10 : 1), max);
		const most = code === 1013 ? 20 : code === 1012 || code === 1001 ? 10 : 1;
		const to = Math.min(min * Math.max(most, 2 ** (this.#fails + 1)), max);
		return from + Math.random() * (to - from);
	}

	#drop() {
		clearTimeout(this.#timer);
		const link = this.#link;
		this.#link = null;
		this.#openedAt = 0;
		this.#from = "";
		link?.close?.(1000);
	}

	#end(code, reason) {
		if (this.#state === "closed") return;
		this.#leave();
		clearInterval(this.#pulse);
		this.#state = "closed";
		this.#listeners.clear();
		this.#watchPage("removeEventListener");
		this.#tell("close", {code, reason, final: true});
	}

	#wanted(more = []) {
		return new Set([this.topics, more, ...this.#tabs.values()].flat());
	}

	#full(topics = this.topics) {
		return this.#wanted(topics).size > Math.max(100, topics.length);
	}

	#change(...topics) {
		for (const topic of topics) this.#changed.add(topic);
		this.#changing ||= setTimeout(() => {
			this.#changing = 0;
			if (this.#openedAt) this.#renew([...this.#changed]);
		}, this.transport === "websocket" ? 0 : pause);
	}

	#renew(changed) {
		const link = this.#link;
		this.#changed.clear();
		if (link.follows) return this.#fresh.size ? this.#join() : this.#ask();
		const unsubscribe = changed.filter((topic) => !this.#topics.has(topic));
		const subscribe = changed.filter((topic) => this.#topics.has(topic));
		if (this.transport === "websocket" && !this.#channel && !subscribe.some((topic) => link.has.has(topic))) {
			for (const topic of subscribe) link.has.add(topic) && this.#known.add(topic);
			link.send(JSON.stringify({realtime: {unsubscribe, subscribe}}));
			this.#begin(subscribe);
		} else if (subscribe.length || (unsubscribe.length && this.#lastEventId)) {
			this.#relink();
		}
	}

	#relink(from = this.#from) {
		this.#drop();
		this.#from = from;
		this.#connect();
	}

	#begin(topics = this.#fresh.keys()) {
		const link = this.#link;
		for (const topic of [...topics]) {
			if (!this.#fresh.get(topic) || link !== this.#link) continue;
			this.#fresh.set(topic);
			this.#tell("reset", {topic});
		}
	}

	#refused(topic, {code, reason = "", final = false, retry = 0}) {
		this.#link.has?.delete(topic);
		if (!this.#topics.has(topic)) return;
		if (final) {
			this.unsubscribe(topic);
			this.#changed.delete(topic);
		} else {
			if (!this.#fresh.has(topic)) this.#fresh.set(topic, true);
			setTimeout(this.#of(this.#link, () => this.#change(topic)), Math.max(retry, this.#backoff(1013)));
		}
		this.#tell("refused", {topic, code, reason, final});
	}

	#enter() {
		if (this.#lock) try {
			this.#channel = new BroadcastChannel(this.#lock);
			this.#channel.onmessage = ({data}) => this.#hear(data);
			this.#abort = new AbortController();
			this.#lead();
		} catch {}
		this.#relink("");
	}

	#leave() {
		this.#drop();
		this.#post({bye: true});
		this.#joined();
		this.#leads?.();
		this.#abort?.abort();
		this.#channel?.close();
		this.#channel = this.#leads = this.#synced = null;
		this.#tabs.clear();
	}

	#post(message) {
		this.#channel?.postMessage({tab: this.#me, ...message});
	}

	#lead(options = this.#abort) {
		const channel = this.#channel;
		let mine;
		navigator.locks.request(this.#lock, options, () => new Promise((release) => {
			if (channel !== this.#channel) return release();
			this.#leads = mine = release;
			this.#joined();
			if (!this.#openedAt || this.#link.follows) this.reconnect();
			this.#announce();
		})).catch(() => {
			if (channel !== this.#channel || (mine && mine !== this.#leads)) return;
			this.#tabs.clear();
			if (!mine) this.#channel = null;
			else if (!options.steal) this.#lead();
			this.#leads = null;
			this.reconnect();
		});
	}

	#announce(from = this.#from) {
		this.#synced = true;
		if (this.#openedAt) this.#post({open: {from, topics: [...this.#link.has], fresh: [...this.#fresh.keys()], transport: this.transport}});
		else if (this.#state !== "open") this.#post({lost: {retry: Math.max(0, this.#due - Date.now()) || 0}});
	}

	#hear({tab, who, want, send, to, bye, open, lost, text, after}) {
		const link = this.#link;
		if (this.#leads) {
			if (who) this.#announce();
			if (want) this.#admit(tab, want);
			if (to === this.#me) this.#pass(send);
			if (bye) this.#tabs.delete(tab);
		} else if (open && link) {
			this.#follow(tab, open);
		} else if (lost && link?.follows) {
			this.#expect(timeout * (1 + Math.random()) + lost.retry);
			this.#openedAt = 0;
			this.#broken(lost.code, lost.reason);
		} else if (text && link?.leader === tab && this.#openedAt) {
			if (after === this.#from || reaches(after, this.#lastEventId)) this.#read(text);
			else this.#join();
		}
	}

	#admit(tab, {topics, id}) {
		const reached = reaches(this.#from, id);
		if (topics.some((topic) => this.#fresh.has(topic))) return;
		this.#tabs.set(tab, topics);
		if (this.#full()) return this.#tabs.delete(tab);
		if (!this.#openedAt || !(reached || reaches(id, this.#from))) return;
		if (reached && topics.every((topic) => this.#link.has.has(topic))) return this.#announce();
		const from = reached ? this.#from : id;
		if (!/local/.test(from)) this.#relink(from);
	}

	#leader() {
		return {follows: true, send: (send) => this.#post({send, to: this.#link.leader})};
	}

	#follow(leader, {from, topics, fresh, transport}) {
		const follows = this.#link.follows;
		if (!follows && this.#fresh.size) return;
		const reached = reaches(from, this.#lastEventId);
		if (follows && (!(this.#synced && reached) || this.#full(topics))) {
			this.#join();
		} else if (reached && this.topics.every((topic) => this.#fresh.has(topic) || (topics.includes(topic) && !fresh.includes(topic)))) {
			if (!follows) {
				this.#drop();
				this.#joined();
				this.#link = this.#leader();
			}
			Object.assign(this.#link, {leader, transport});
			this.#from = from;
			for (const topic of topics) this.#known.add(topic);
			this.#synced = true;
			if (!this.#openedAt) this.#opened();
		} else {
			if (follows) {
				this.#openedAt = 0;
				this.#expect(timeout);
			}
			if (follows || this.#openedAt) this.#ask();
		}
	}

	#ask() {
		this.#asks = 0;
		if (this.#lastEventId) this.#post({want: {topics: this.topics.filter((topic) => !this.#fresh.has(topic)), id: this.#lastEventId}});
	}

	#join(options = this.#abort) {
		if (this.#joins && !options.steal) return;
		clearTimeout(this.#timer);
		const joins = this.#joins = setTimeout(() => this.#joins === joins && this.#join({steal: true}), timeout);
		navigator.locks.request(`${this.#lock} join`, options, () => new Promise((release) => {
			if (this.#joins !== joins) return release();
			this.#joins = release;
			setTimeout(release, 1e3);
			this.#relink("");
		})).catch(() => {});
	}

	#joined() {
		clearTimeout(this.#asks);
		this.#joins?.call?.();
		this.#joins = this.#asks = 0;
	}

	#watchPage(add) {
		for (const type of ["online", "pagehide", "pageshow", "visibilitychange"]) globalThis[add]?.(type, this.#check, true);
	}

	#check = ({type, persisted} = {}) => {
		const now = Date.now();
		const late = now - this.#checked;
		this.#checked = now;
		if (late > 30e3) this.#doubts = true;
		const due = this.#due <= now;
		if (type === "pagehide") {
			if (!persisted) return this.#post({bye: true});
			this.#leave();
		} else if (type === "pageshow") {
			if (persisted) this.#broken(this.#enter());
		} else if (late > 90e3 || type === "online" ? due || (!this.#due && (late > 90e3 || this.#lastEventId)) : due && type && !document.hidden) {
			this.reconnect();
		} else if (this.#doubts && !globalThis.document?.hidden && this.#interval && this.#pass(JSON.stringify({realtime: {unsubscribe: [""]}}))) {
			this.#doubts = false;
			this.#missed = this.#limit;
			this.#watch();
		}
	};

	#watch() {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(() => {
			if (++this.#missed <= this.#limit) return this.#watch();
			this.#limit = Math.min(2 * this.#limit, 64);
			this.#lost();
		}, this.#missed < this.#limit ? this.#interval : 5e3);
	}

	#read(text) {
		const message = {id: "", topic: "", event: "message", key: "", gone: false, json() { return JSON.parse(this.data); }, ...JSON.parse(text)};
		const {id, topic, data, encoding, reset, interval, client, close, subscribed, unsubscribed = [], refused} = message;
		if (close) return this.#lost(close);
		const link = this.#link;
		const begins = !this.#openedAt || (id && !this.#from);
		this.#missed = 0;
		if (client && !this.#channel) this.#id = client;
		if (!this.#openedAt) this.#opened();
		if (link !== this.#link) return;
		const after = this.#from || id;
		if (this.#leads && begins) this.#announce(after);
		if (this.#leads) this.#post({text, after});
		if (id) this.#from = id;
		if (interval) {
			if (Date.now() - this.#openedAt > interval / 2) this.#limit = 2;
			this.#interval = interval;
			this.#watch();
		}
		const had = this.#channel && reaches(id, this.#lastEventId);
		if ((reset && !topic) || (id && !had)) this.#lastEventId = id;
		if (subscribed) {
			for (const topic of subscribed) if (link.has && !this.#changed.has(topic)) this.#fresh.delete(topic);
			if (this.#leads) this.#announce();
		}
		for (const topic of unsubscribed) link.has?.delete(topic);
		if ((id || subscribed) && this.#joins?.call && !this.#fresh.size) this.#asks ||= setTimeout(() => this.#ask(), pause);
		if (refused) return this.#refused(topic, refused);
		if (this.#known.has(topic) && !this.#topics.has(topic)) return;
		if (this.#fresh.has(topic)) {
			if (link.follows || this.#changed.has(topic)) return;
			this.#fresh.set(topic, true);
		}
		if (reset) this.#tell("reset", {topic});
		else if (data !== undefined && !had) {
			if (encoding) message.data = Uint8Array.from(atob(data), (c) => c.charCodeAt());
			this.#hand(message);
		}
	}

	#hand(message) {
		for (const entry of [...this.#listeners]) {
			const {event = message.event, topic = message.topic, listener} = entry;
			if (event === message.event && topic === message.topic && this.#listeners.has(entry)) this.#call(listener, message);
		}
	}

	#call(listener, message) {
		try {
			listener?.(message);
		} catch (error) {
			reportError(error);
		}
	}

	#tell(type, fields) {
		this.dispatchEvent(Object.assign(new Event(type), fields));
	}
}

function resolve(url) {
	url = new URL(url, globalThis.document?.baseURI ?? globalThis.location);
	url.protocol = url.protocol.replace("ws", "http");
	url.hash = "";
	return url;
}

function reaches(a, b) {
	const [history, at] = a.split("-");
	const [other, to] = b.split("-");
	return (a === b && a) || (history === other && parseInt(at) <= parseInt(to));
}
