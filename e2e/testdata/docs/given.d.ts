// What the JavaScript of the pages uses without declaring it.
declare function show(value: unknown): void;
declare function append(text: unknown): void;
declare const io: any;
