package docs

// What the pages use. TestGo compiles them with this module's requirements.
import (
	_ "github.com/coder/websocket"
	_ "github.com/gorilla/websocket"
	_ "github.com/nats-io/nats.go"
	_ "github.com/olahol/melody"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/redis/rueidis"
	_ "golang.org/x/time/rate"

	_ "github.com/shashiranjanraj/kashvi/pkg/realtime"
	_ "github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
	_ "github.com/shashiranjanraj/kashvi/pkg/realtime/prommetrics"
	_ "github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)
