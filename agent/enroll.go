package agent

import (
	"context"
	"fmt"
	"net"

	"github.com/stopgap-em/stopgap/agent/internal/identity"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
)

// EnrollConfig says how to get an identity.
type EnrollConfig struct {
	// StateDir of the agent; made if it is not there.
	StateDir string
	// Controller is its address, host:port, and ServerName the name in its certificate when it is not that of the address.
	Controller, ServerName string
	// Token is the token string.
	Token string
	// Host as in Config; its machine id is bound to the identity. Empty: it is bound at the first connection.
	Host string
	// Name is a label for people; default the host name of the server.
	Name string
	// Again replaces the credentials that are there: with a token bound to this agent's id. Journal, root and version floors
	// stay.
	Again bool
	// NewRoot gives up the root that is held for the token's: for a fleet whose root keys were lost.
	NewRoot bool
	// Dialer replaces the network; nil: TCP.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)
}

// Enroll makes a key, exchanges the token for a certificate, and writes credentials and trust anchor into the state directory.
// Nothing of the controller's is believed that the token does not vouch for. It returns the agent's id.
func Enroll(ctx context.Context, cfg EnrollConfig) (string, error) {
	c := identity.Config{StateDir: cfg.StateDir, Controller: cfg.Controller, ServerName: cfg.ServerName, Token: cfg.Token, Name: cfg.Name,
		Again: cfg.Again, NewRoot: cfg.NewRoot, Dialer: cfg.Dialer}
	if cfg.Host != "" {
		c.Facts = func(ctx context.Context) (*stopgapv1.Facts, error) {
			d, err := OpenHost(cfg.Host, cfg.StateDir)
			if err != nil {
				return nil, err
			}
			f, err := d.Facts(ctx)
			if err != nil {
				return nil, fmt.Errorf("enroll: the server can't be read: %w", err)
			}
			return f, nil
		}
	}
	return identity.Enroll(ctx, c)
}
