package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	networkcheck "github.com/stopgap-em/stopgap/agent/internal/check"
	"github.com/stopgap-em/stopgap/agent/internal/settings"
	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/transport"
	"github.com/stopgap-em/stopgap/shared/trust"
)

var errSomethingFails = errors.New("the way to the controller does not work; the first hop that fails stands above")

func check(o *options) *cobra.Command {
	cfg := networkcheck.Config{Proxy: networkcheck.Proxy}
	var serverName, credentials string
	c := &cobra.Command{
		Use:   "check",
		Short: "Walk the way to the controller and name the hop that fails, and what to ask the network team for",
		Long: "Name resolution, proxy, TCP, TLS and which certificate was shown, HTTP/2, a stream that stands for a while, clocks, and how old the\n" +
			"policy is. Changes nothing, and an agent that runs keeps its stream. Exit 1 when a hop fails.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := settings.Load(o.state)
			if err != nil {
				return err
			}
			cfg.Source = "--controller"
			if cfg.Controller == "" {
				cfg.Controller, cfg.Source = s.Controller, "settings"
			}
			if serverName == "" {
				serverName = s.ServerName
			}
			if credentials == "" {
				credentials = filepath.Join(o.state, "credentials")
			}
			if cfg.TLS, cfg.Enrolled, err = checkTLS(credentials, s, serverName); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			report := func(st networkcheck.Step) {
				word := "FAILS"
				switch {
				case st.Warning:
					word = "look"
				case st.OK:
					word = "ok"
				}
				fmt.Fprintf(w, "%-6s %-16s %s\n", word, st.Name, clirun.Printable(st.Detail))
				if st.Ask != "" {
					fmt.Fprintf(w, "%-6s %-16s %s\n", "", "", "-> "+st.Ask)
				}
			}
			ok := networkcheck.Run(cmd.Context(), cfg, report)
			for _, st := range policySteps(cmd, o) {
				report(st)
				ok = ok && st.OK
			}
			if !ok {
				return errSomethingFails
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Controller, "controller", "", "controller address, host:port (default: that of the settings)")
	f.StringVar(&serverName, "server-name", "", "name in the controller's certificate, if it is not that of the address")
	f.StringVar(&credentials, "credentials", "", "directory of ca.pem, cert.pem, key.pem (default STATE/credentials)")
	f.DurationVar(&cfg.Timeout, "timeout", 0, "bound of each hop (default 10s)")
	return c
}

// checkTLS is what the agent would use: its identity, or before it has one the token's CA.
func checkTLS(dir string, s settings.Settings, serverName string) (*tls.Config, bool, error) {
	creds, err := trust.LoadCredentials(dir)
	if err == nil {
		return trust.ClientTLS(creds, serverName), true, nil
	}
	if s.Token == "" {
		return nil, false, nil //nolint:nilerr // the way is walked all the same
	}
	token, err := trust.ParseToken(s.Token)
	if err != nil {
		return nil, false, err
	}
	return trust.EnrollTLS(token.CA, serverName), false, nil
}

// policySteps says how old the policy is, by the agent's own account.
func policySteps(cmd *cobra.Command, o *options) []networkcheck.Step {
	var s *stopgapv1.StatusResponse
	err := with(cmd, o, func(ctx context.Context, lc stopgapv1.LocalServiceClient) error {
		var err error
		s, err = lc.Status(ctx, &stopgapv1.StatusRequest{})
		return err
	})
	if err != nil {
		return []networkcheck.Step{{Name: "policy", OK: true, Warning: true, Detail: "can't be asked: " + clirun.Text(err)}}
	}
	st := networkcheck.Step{Name: "policy", OK: true, Detail: "none yet", Warning: s.GetPolicyVersion() == 0}
	if s.GetPolicyVersion() > 0 {
		age := time.Since(s.GetPolicyAcceptedAt().AsTime()).Round(time.Second)
		st.Detail = fmt.Sprintf("version %d, confirmed %s ago, valid until %s", s.GetPolicyVersion(), age, s.GetPolicyExpires().AsTime().Local().Format(time.DateTime))
		st.Warning = age > 2*time.Hour
		if time.Now().After(s.GetPolicyExpires().AsTime()) {
			st.OK, st.Warning, st.Ask = false, false, "it has ended: the operators must refresh and publish it"
		}
	}
	if s.GetRefusedError() != "" {
		st.OK, st.Warning, st.Ask = false, false, "the last one was refused: "+s.GetRefusedError()
	}
	out := []networkcheck.Step{st}
	if !s.GetStored() {
		up := networkcheck.Step{Name: "agent", OK: true, Detail: "runs, and its stream stands"}
		if !s.GetConnected() {
			up = networkcheck.Step{Name: "agent", OK: true, Warning: true, Detail: fmt.Sprintf("runs without a stream: %s", s.GetLastError()),
				Ask: fmt.Sprintf("heartbeats come every %s; it connects again by itself", transport.HeartbeatInterval)}
		}
		return append(out, up)
	}
	return append(out, networkcheck.Step{Name: "agent", OK: true, Warning: true, Detail: "does not run", Ask: "start it: sc.exe start StopgapAgent"})
}
