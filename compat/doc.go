// Package compat has tests of package realtime behind routers, middleware and
// reverse proxies that Go services use. It is a module of its own, so that users
// of realtime don't get them as requirements.
package compat
