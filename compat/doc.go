// Package compat has tests of package realtime behind routers, middleware and a
// reverse proxy that Go services use. It is a module of its own, so that users
// of realtime don't get them as requirements.
package compat
