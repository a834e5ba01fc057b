package client_test

import (
	"context"
	"fmt"

	"github.com/parley-im/parley/client"
)

func Example() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Options{
		User: "alice", Password: "lunch-at-noon", Device: "laptop",
		OnEvent: func(e client.Event) {
			if m, ok := e.(client.Message); ok {
				fmt.Printf("%s %s: %s\n", m.Conv, m.From, m.Body)
			}
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Close(ctx) }()
	sent, err := c.Send(ctx, "dm/bob", "", "lunch?")
	fmt.Println(sent.Seq, err)
}
