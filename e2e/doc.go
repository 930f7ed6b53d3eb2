// Package e2e drives a real browser, Debian's Chromium, against the programs in
// examples, against realtime.js behind a proxy that cuts connections, and
// against the JavaScript that the documentation shows. It has tests alone, and is a module of its own so that nobody who uses realtime
// pays for the driver.
//
//	apt-get install chromium
//	go test ./...
//
// $CHROMIUM names another browser to use, such as google-chrome. A test that
// fails leaves a screenshot of each tab: add -artifacts to keep them.
package e2e
