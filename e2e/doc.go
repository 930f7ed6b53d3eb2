// Package e2e has tests that drive a real browser, Debian's Chromium. They test
// the programs in examples, realtime.js behind a proxy that cuts connections and as
// an npm package, and the JavaScript that the documentation shows. TestRecovery
// makes servers, networks and tabs fail by chance. Other tests drive known clients
// from npm and Debian. The package is a module of its own, so that users of realtime
// don't get the driver.
//
//	apt-get install chromium npm curl python3-aiohttp python3-httpx python3-websockets
//	go test ./...
//
// $CHROMIUM names another browser to use, such as google-chrome. A test that
// fails saves a screenshot of each tab. With -artifacts they are kept. One test
// takes the screenshots of the README:
//
//	go test -run TestScreenshots -screenshots ../docs/images .
package e2e
