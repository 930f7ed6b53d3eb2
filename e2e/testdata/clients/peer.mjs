// Drives clients that have the API of browsers. It runs in pages as well. What
// a client does is told by emit, an object a time; see line in clients_test.go.

const withID = (url, id) => url + (id ? "&lastEventId=" + encodeURIComponent(id) : "");

export function streams(EventSource, emit) {
	let es;
	return {
		connect({ url, lastID, names }) {
			es?.close();
			es = new EventSource(withID(url, lastID));
			es.onopen = () => emit({ kind: "open" });
			es.onerror = (e) => emit({ kind: "end", final: es.readyState === 2, error: String(e.code ?? "") });
			for (const name of names) {
				es.addEventListener(name, (e) => emit({ kind: "event", name: e.type, id: e.lastEventId, data: e.data }));
			}
		},
	};
}

// resumes: the class reconnects, and asks a function for the URL each time.
export function sockets(WebSocket, emit, resumes = false) {
	let ws;
	return {
		connect({ url, lastID, protocols = [] }) {
			if (resumes) {
				ws?.close();
			}
			let opened = false, ended = false;
			const current = (ws = new WebSocket(resumes ? () => withID(url, lastID) : withID(url, lastID), protocols));
			const tell = (line) => current === ws && emit(line);
			ws.binaryType = "arraybuffer";
			ws.onopen = () => {
				opened = true;
				ended = false;
				tell({ kind: "open", protocol: current.protocol });
			};
			ws.onmessage = ({ data }) => {
				if (typeof data !== "string") {
					tell({ kind: "event", binary: true, data: btoa(String.fromCharCode(...new Uint8Array(data))) });
					return;
				}
				if (current.protocol) {
					lastID = JSON.parse(data).id ?? lastID;
				}
				tell({ kind: "event", data });
			};
			const end = (line) => {
				if (!ended) {
					ended = true;
					tell({ kind: "end", ...line });
				}
			};
			// An attempt may fail with either event first, or without a close.
			ws.onerror = (e) => opened || end({ error: e.message });
			ws.onclose = (e) => end({ code: e.code, reason: e.reason });
		},
		send({ data, binary }) {
			ws.send(binary ? Uint8Array.from(atob(data), (c) => c.charCodeAt(0)) : data);
		},
	};
}
