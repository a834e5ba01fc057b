package main

import "github.com/spf13/cobra"

// extraCommands are the clients: they talk to a server like anybody else.
func extraCommands() []*cobra.Command { return []*cobra.Command{newChatCmd(), newBenchCmd()} }
