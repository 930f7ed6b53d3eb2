// What the pages of the examples share.

export const $ = (id) => document.getElementById(id);

// make returns an element. Strings in its content become text: nothing here
// parses HTML, so what people write can't inject any.
export function make(tag, className, ...content) {
	const element = document.createElement(tag);
	element.className = className;
	element.append(...content);
	return element;
}

// Times have 24 hours in every language.
const clock = (more) => new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...more});
export const minutes = clock(); // 14:05
export const seconds = clock({second: "2-digit"}); // 14:05:09

// show shows a state in an element with the class "state":
//
//	first  connecting for the first time
//	live   connected
//	again  the connection is lost, and another one is tried
//	over   refused or ended: nothing more is tried
//	idle   there is nothing to connect for
export function show(element, state, text) {
	if (element.dataset.state === state && element.textContent === text) return; // it would be read out again
	element.dataset.state = state;
	element.textContent = text;
}

// follow shows the state of a Connection of realtime.js. It calls changed, if
// there is one, with the state and the hub's reason, if there is one.
export function follow(live, element, changed = () => {}) {
	let slow; // timer
	const set = (state, text, reason = "") => {
		clearTimeout(slow);
		show(element, state, text);
		changed(state, reason);
	};
	live.addEventListener("open", () => set("live", "Live"));
	live.addEventListener("close", ({final, code, reason}) => {
		if (!final) set("again", "Reconnecting…", reason);
		else if (code === 1000) set("idle", "Disconnected"); // mostly by the page itself
		else set("over", code < 4000 ? "Ended" : "Refused", reason);
	});
	set("first", "Connecting…");
	slow = setTimeout(() => set("again", "No answer yet…"), 5000);
}
