// What the types allow and what they don't. Nothing runs it.
import { connect, Connection, type ConnectionCloseEvent, type ConnectionRefusedEvent, type Members, type Message, type Options, type Transport, type Url } from "@kashvi/realtime";

const topics: readonly string[] = ["a"];
const options: Options = { topics, transports: ["eventsource"], lastEventId: "x-1", backoff: { min: 1 }, withCredentials: true, shared: "name" };
const live: Connection = connect("/live", options);
connect(new URL("https://example.com/live"));
connect(() => "/live?token=1", { shared: true });
connect(async () => new URL("/live", location.href));
new Connection("/live");

const url: Url = async () => "/live";
const id: string = live.id;
const state: "connecting" | "open" | "closed" = live.state;
const transport: Transport = live.transport;
const all: string[] = live.topics;
const first: string | undefined = live.topics[0];

const stop: () => void = live.on("price", (message: Message) => {
	const value: { value: number } = message.json<{ value: number }>();
	const data: string | Uint8Array = message.data;
	void value;
	void data;
});
live.addEventListener("close", (event: ConnectionCloseEvent) => {
	const [code, reason, final]: [number, string, boolean] = [event.code, event.reason, event.final];
	if (code === 4401 && final) live.close();
	else if (reason) live.reconnect();
});
live.addEventListener("open", function () {
	this.send("hello");
	this.send(new Uint8Array(1));
});
live.removeEventListener("reset", () => {});
const leave: () => void = live.subscribe("room", (message) => void message.topic);
live.unsubscribe("room");
const members: Members<{ mood: string }> = live.members<{ mood: string }>("room", (all) => void all.size);
const mood: string | undefined = members.get("Ann")?.mood;
members.stop();
live.addEventListener("refused", (event: ConnectionRefusedEvent) => {
	const [topic, code, final]: [string, number, boolean] = [event.topic, event.code, event.final];
	void [topic, code, final];
});

// @ts-expect-error topics is an array
connect("/live", { topics: "a" });
// @ts-expect-error there is no such transport
connect("/live", { transports: ["sse"] });
// @ts-expect-error an option is left out instead
connect("/live", { topics: undefined });
// @ts-expect-error a topic may be missing
const missing: string = live.topics[0];
// @ts-expect-error the map is the connection's
members.set("Ann", { mood: "fine" });
// @ts-expect-error it is the hub's
live.id = "x";
// @ts-expect-error a message is text or bytes
live.send({});
// @ts-expect-error there is no such event
live.addEventListener("close", (event: MessageEvent) => event.data);

void [leave, mood, url, id, state, transport, all, first, stop, missing];
