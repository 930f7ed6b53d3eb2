// Package compat holds tests of package realtime behind the routers and the
// middleware that Go services use. It is a module of its own, so that nobody
// who imports realtime gets any of them.
package compat
