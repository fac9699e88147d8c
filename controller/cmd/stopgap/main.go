// Command stopgap is what operators type.
package main

import (
	"context"
	"os"

	"github.com/stopgap-em/stopgap/controller/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
