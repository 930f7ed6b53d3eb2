module github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker

go 1.26.0

replace github.com/shashiranjanraj/kashvi/pkg/realtime => ..

require (
	github.com/coder/websocket v1.8.15
	github.com/redis/rueidis v1.0.79
	github.com/shashiranjanraj/kashvi/pkg/realtime v0.0.0-00010101000000-000000000000
)

require golang.org/x/sys v0.47.0 // indirect
