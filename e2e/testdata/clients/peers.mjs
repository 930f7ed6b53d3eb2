// node peers.mjs NAME: drives a client from npm. Commands come on the standard
// input, one a line.
import { createInterface } from "node:readline";
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { EventSource } from "eventsource";
import ReconnectingWebSocket from "reconnecting-websocket";
import * as undici from "undici";
import WebSocket from "ws";
import { sockets, streams } from "./peer.mjs";

const emit = (line) => process.stdout.write(JSON.stringify(line) + "\n");

// fetchStreams drives fetch-event-source, which is made for pages.
function fetchStreams() {
	globalThis.window = globalThis;
	globalThis.document = { removeEventListener() {} };
	class Refused extends Error {}
	let running;
	return {
		connect({ url, lastID }) {
			running?.abort();
			running = new AbortController();
			fetchEventSource(url, {
				signal: running.signal,
				openWhenHidden: true,
				headers: lastID ? { "Last-Event-ID": lastID } : {},
				async onopen(response) {
					if (!response.ok) {
						throw new Refused(response.status);
					}
					emit({ kind: "open" });
				},
				onmessage({ event, id, data }) {
					if (id) {
						emit({ kind: "event", name: event || "message", id, data }); // not the end of a comment
					}
				},
				onclose() {
					throw new Error("closed"); // it doesn't reconnect otherwise
				},
				onerror(err) {
					emit({ kind: "end", final: err instanceof Refused, error: err.message });
					if (err instanceof Refused) {
						throw err;
					}
				},
			}).catch(() => {});
		},
	};
}

class Reconnecting extends ReconnectingWebSocket {
	constructor(url, protocols) {
		super(url, protocols, { WebSocket, minReconnectionDelay: 100, maxReconnectionDelay: 500 });
	}
}

const peer = {
	"eventsource": () => streams(EventSource, emit),
	"undici EventSource": () => streams(undici.EventSource, emit),
	"fetch-event-source": fetchStreams,
	"ws": () => sockets(WebSocket, emit),
	"undici WebSocket": () => sockets(undici.WebSocket, emit),
	"reconnecting-websocket": () => sockets(Reconnecting, emit, true),
}[process.argv[2]]();

for await (const line of createInterface({ input: process.stdin })) {
	const command = JSON.parse(line);
	peer[command.do](command);
}
process.exit();
