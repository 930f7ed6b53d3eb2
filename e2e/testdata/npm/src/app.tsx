// An app with React that uses the README's hook. StrictMode runs each effect twice.
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useLive } from "./useLive";

function Price({ topic }: { topic: string }) {
	const price = useLive("/live?topic=" + topic, "price", { value: 0 });
	return <output>{price.value}</output>;
}

function App() {
	const [topic, setTopic] = useState("");
	return (
		<>
			{["prices", "others", ""].map((t) => <button key={t} onClick={() => setTopic(t)}>{t || "none"}</button>)}
			{topic && <Price topic={topic} />}
		</>
	);
}

createRoot(document.querySelector("#react")!).render(<StrictMode><App /></StrictMode>);
