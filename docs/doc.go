// Package docs has pages for newcomers, one for each question, and tests that run
// what the pages show. It is a module of its own, because the pages show more than
// users of realtime require.
//
// Each block of a page and of the README is checked, by its language:
//
//	go                     compiles, and its tests pass, see TestGo
//	sh                     each command passes its check, see TestCommands
//	yaml                   parses, see TestYAML
//	js, ts, tsx, html      has the right types, see ../e2e/docs_test.go
//	nginx, caddy, haproxy  works, see ../compat/proxies_test.go
//
// Any other language fails the tests. A block without one is for reading.
package docs
