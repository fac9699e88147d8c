// Package clirun is how every binary of Stopgap runs its commands: signals end the context, an error is one line on
// standard error and exit code 1, a wrong call is exit code 2 with the way to help, and listings are printed as table,
// JSON, CSV or YAML. What the commands do is elsewhere.
package clirun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit codes.
const (
	OK     = 0
	Failed = 1
	Usage  = 2
)

// ErrUsage marks an error as a wrong call.
var ErrUsage = errors.New("usage")

// Main runs a command tree.
func Main(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	ran := false
	root.PersistentPreRun = func(*cobra.Command, []string) { ran = true }
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", ErrUsage, err) })
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return OK
	}
	_, _ = fmt.Fprintf(stderr, "%s: %s\n", root.Name(), Text(err))
	if errors.Is(err, ErrUsage) || !ran || strings.HasPrefix(err.Error(), "required flag") {
		_, _ = fmt.Fprintf(stderr, "See '%s --help'.\n", cmd.CommandPath())
		return Usage
	}
	return Failed
}

var wireNoise = regexp.MustCompile(`^(connection error: desc = "?|transport: |Error while dialing: |authentication handshake failed: |error reading server preface: |remote error: )+`) //nolint:misspell // grpc's own words

// unreachable says why there is no connection, and what to do.
func unreachable(msg string) string {
	plain := strings.TrimSuffix(wireNoise.ReplaceAllString(msg, ""), `"`)
	for _, h := range []struct{ part, hint string }{
		{"no agent runs", ""},
		{"connection refused", "is it running, and is the address right?"},
		{"unknown authority", "the credentials are of another fleet, or this is not its controller"},
		{"unknown certificate authority", "the credentials are of another fleet, or this is not its controller"},
		{"certificate is", "name the one in the controller's certificate with --server-name, or use one that was given to init --host"},
		{"zero addresses", "the host name can't be resolved"},
		{"does not look like a TLS handshake", "something else listens there"},
		{"deadline exceeded", "something listens there and does not answer"},
	} {
		if strings.Contains(plain, h.part) {
			if h.hint == "" {
				return plain
			}
			return "can't be reached: " + h.hint + " (" + plain + ")"
		}
	}
	return "can't be reached: " + plain
}

// Text is an error for a person: of a failed call, its message and not the wire's.
func Text(err error) string {
	text := err.Error()
	var gs interface{ GRPCStatus() *status.Status }
	if errors.As(err, &gs) {
		st := gs.GRPCStatus()
		switch st.Code() {
		case codes.Unavailable, codes.DeadlineExceeded:
			text = unreachable(st.Message())
		default:
			text = st.Message()
		}
	}
	return strings.TrimPrefix(text, ErrUsage.Error()+": ")
}
