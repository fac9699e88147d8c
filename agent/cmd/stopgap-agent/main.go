// Command stopgap-agent looks after one Exchange server.
package main

import (
	"context"
	"os"

	"github.com/stopgap-em/stopgap/agent/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
