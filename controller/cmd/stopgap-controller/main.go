// Command stopgap-controller serves a fleet of agents and its operators.
package main

import (
	"context"
	"os"

	"github.com/stopgap-em/stopgap/controller/internal/controllercli"
)

func main() {
	os.Exit(controllercli.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
