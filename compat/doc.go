// Package compat holds tests of package realtime behind the routers, the
// middleware and the reverse proxy that Go services use. It is a module of its
// own, so that nobody who imports realtime gets any of them.
package compat
