//go:build linux

package main

import (
	"context"
	"net/http"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/nats-io/nats.go"
	"github.com/redis/rueidis"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// A nodeContender is a server to compare on several nodes.
type nodeContender struct {
	name    string
	engine  string // "redis" or "nats"; empty: the engine is part of the nodes
	keeps   bool   // a history
	ours    bool
	clients protocol

	// serve sets a node up, in its own process. It returns the handler that
	// clients connect to, and a function that publishes a message. Many
	// goroutines call the function at the same time.
	serve func(e engineConfig) (http.Handler, func(msg []byte) error, error)
}

// An engineConfig tells a node how to use the engine.
type engineConfig struct {
	Addr   string   // host:port of a server
	Keep   bool     // a history
	Listen string   // this node's host:port, if the engine is part of the nodes
	Routes []string // every node's, in the same case
}

var topicClient = protocol{path: "/?topic=messages"}

var nodeContenders = []nodeContender{
	{"realtime on NATS", "nats", false, true, topicClient, serveNodeNATS},
	{"realtime, embedded NATS", "", false, true, topicClient, serveNodeEmbedded},
	{"realtime on Redis", "redis", false, true, topicClient, serveNodeRedis},
	{"centrifuge on Redis", "redis", false, false, centrifugeJSON, serveNodeCentrifuge},
	{"realtime on NATS, history", "nats", true, true, topicClient, serveNodeNATS},
	{"realtime on Redis, history", "redis", true, true, topicClient, serveNodeRedis},
	{"centrifuge on Redis, history", "redis", true, false, centrifugeJSON, serveNodeCentrifuge},
}

func serveNodeNATS(e engineConfig) (http.Handler, func([]byte) error, error) {
	conn, err := nats.Connect("nats://"+e.Addr, natsbroker.Options()...)
	if err != nil {
		return nil, nil, err
	}
	b := natsbroker.New("realtime", conn)
	if e.Keep {
		return serveNode(b.WithHistory(), true)
	}
	return serveNode(b, false)
}

func serveNodeEmbedded(e engineConfig) (http.Handler, func([]byte) error, error) {
	b, err := natsbroker.Embedded("realtime", natsbroker.Config{Listen: e.Listen, Routes: e.Routes})
	if err != nil {
		return nil, nil, err
	}
	return serveNode(b, false)
}

func serveNodeRedis(e engineConfig) (http.Handler, func([]byte) error, error) {
	options := rueidis.ClientOption{InitAddress: []string{e.Addr}}
	if e.Keep {
		return serveNode(redisbroker.Connect("realtime", options).WithHistory(), true)
	}
	return serveNode(redisbroker.Connect("realtime", options), false)
}

// serveNode follows this package's README, with a broker.
func serveNode(b realtime.Broker, keep bool) (http.Handler, func([]byte) error, error) {
	hub := realtime.NewHub()
	hub.Broker = b
	if keep {
		hub.History = realtime.History{Events: 300, Age: time.Minute}
	}
	go hub.Run()
	return hub, func(msg []byte) error {
		return hub.Publish(context.Background(), "messages", realtime.Event{Data: msg})
	}, nil
}

// serveNodeCentrifuge follows the tutorial in centrifuge's README, with its Redis
// engine.
func serveNodeCentrifuge(e engineConfig) (http.Handler, func([]byte) error, error) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		return nil, nil, err
	}
	shard, err := centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: e.Addr})
	if err != nil {
		return nil, nil, err
	}
	broker, err := centrifuge.NewRedisBroker(node, centrifuge.RedisBrokerConfig{Shards: []*centrifuge.RedisShard{shard}})
	if err != nil {
		return nil, nil, err
	}
	node.SetBroker(broker)
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(_ centrifuge.SubscribeEvent, cb centrifuge.SubscribeCallback) {
			cb(centrifuge.SubscribeReply{Options: centrifuge.SubscribeOptions{EnableRecovery: e.Keep}}, nil)
		})
	})
	if err := node.Run(); err != nil {
		return nil, nil, err
	}
	var options []centrifuge.PublishOption
	if e.Keep {
		options = append(options, centrifuge.WithHistory(300, time.Minute))
	}
	clients := centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{})
	join := func(w http.ResponseWriter, r *http.Request) {
		ctx := centrifuge.SetCredentials(r.Context(), &centrifuge.Credentials{UserID: ""})
		clients.ServeHTTP(w, r.WithContext(ctx))
	}
	return http.HandlerFunc(join), func(msg []byte) error {
		_, err := node.Publish("chat", msg, options...)
		return err
	}, nil
}
