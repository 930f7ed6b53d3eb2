import { connect } from "@kashvi/realtime";

interface Price {
	value: number;
}

const live = connect("/live", { topics: ["prices"] });
live.on("price", (event) => {
	document.querySelector("#price")!.textContent = String(event.json<Price>().value);
});
