package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/stopgap-em/stopgap/agent"
	"github.com/stopgap-em/stopgap/agent/internal/event"
	"github.com/stopgap-em/stopgap/agent/internal/journal"
	"github.com/stopgap-em/stopgap/agent/internal/service"
	"github.com/stopgap-em/stopgap/agent/internal/settings"
	"github.com/stopgap-em/stopgap/shared"
	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/logging"
)

func install(o *options) *cobra.Command {
	var s settings.Settings
	var tokenFile string
	var delayed, fromMSI, noStart bool
	c := &cobra.Command{
		Use:   "install",
		Short: "Make this program the Windows service StopgapAgent (the MSI does the same)",
		Long: "Registers the service with this program where it is now, keeps the settings and the token in STATE, which only SYSTEM and\n" +
			"Administrators may read, and starts it. It enrols by itself, as soon as the controller answers. Once more changes the settings\n" +
			"that are given; state and what is applied stay.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := service.Supported(); err != nil {
				return err
			}
			if tokenFile != "" {
				token, err := readToken(cmd.InOrStdin(), tokenFile)
				if err != nil {
					return err
				}
				s.Token = token
			}
			if err := aside(o.state); err != nil {
				return err
			}
			if err := s.Save(o.state); err != nil {
				return err
			}
			if err := event.Register(); err != nil {
				return fmt.Errorf("event log: %w", err)
			}
			exe, err := os.Executable()
			if err != nil {
				return err
			}
			if err := service.Register(exe, delayed); err != nil {
				return err
			}
			tellOnce(event.Installed, "Stopgap Agent %s was installed.", shared.Version)
			if fromMSI || noStart {
				return nil
			}
			if err := service.Start(); err != nil {
				return fmt.Errorf("the service is installed and does not start: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "service %s is installed and runs; next: stopgap-agent status\n", service.Name)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&s.Controller, "controller", "", "controller address, host:port")
	f.StringVar(&s.ServerName, "server-name", "", "name in the controller's certificate, if it is not that of the address")
	f.StringVar(&s.Token, "token", "", "the token of `stopgap token create`")
	f.StringVar(&tokenFile, "token-file", "", "file that holds the token; - for standard input")
	f.StringVar(&s.CAFingerprint, "ca-fingerprint", "", "SHA-256 of the controller's CA key: a token of another fleet is refused")
	f.BoolVar(&delayed, "delayed", false, "start some minutes after Windows")
	f.BoolVar(&noStart, "no-start", false, "do not start it")
	f.BoolVar(&fromMSI, "from-msi", false, "the MSI made the service")
	_ = f.MarkHidden("from-msi")
	return c
}

// aside makes the state directory; one that somebody made who is no administrator is moved away first: what is in it is not to be
// believed.
func aside(state string) error {
	err := files.MakePrivateDir(state)
	if !errors.Is(err, files.ErrPlanted) {
		return err
	}
	to := fmt.Sprintf("%s.untrusted-%s", state, time.Now().UTC().Format("20060102T150405"))
	if rerr := os.Rename(state, to); rerr != nil {
		return errors.Join(err, rerr)
	}
	return files.MakePrivateDir(state)
}

func tellOnce(id event.ID, format string, args ...any) {
	log, err := event.Open()
	if err != nil {
		return
	}
	event.NewTeller(log, quiet()).Tell(id, format, args...)
}

func uninstall(o *options, stderr io.Writer) *cobra.Command {
	var fromMSI bool
	var revertFlag string
	host := ""
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the service; what is applied stays, unless --revert-mitigations is given",
		Long: "Stops and removes the service. Mitigations that are applied stay in force, so that one wrong deployment scope does not strip a\n" +
			"fleet; STATE/UNDO.txt says what they are and how each is undone. With --revert-mitigations they are taken off first, and when\n" +
			"one of them can't be, the service stays. State and identity are kept for an agent that is installed again.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reverting := revertFlag == "1"
			if !reverting && revertFlag != "" && revertFlag != "0" {
				return fmt.Errorf("%w: REVERTMITIGATIONS, --revert-mitigations: %q is neither 1 nor 0", clirun.ErrUsage, revertFlag)
			}
			if !fromMSI {
				if err := service.Unregister(cmd.Context()); err != nil {
					return err
				}
			}
			log, err := logging.New("stopgap-agent", "warn", "text", stderr)
			if err != nil {
				return err
			}
			if !gone(o.state, journal.File) || !gone(o.state, journal.PlainFile) {
				return leave(cmd, o, host, reverting, fromMSI, log)
			}
			tellOnce(event.UninstalledClean, "Stopgap Agent was removed. Nothing of it was applied on this server.")
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&revertFlag, "revert-mitigations", "", "take off what is applied first (1), or keep it (0, the default)")
	f.Lookup("revert-mitigations").NoOptDefVal = "1"
	f.BoolVar(&fromMSI, "from-msi", false, "the MSI removes the service")
	_ = f.MarkHidden("from-msi")
	hostFlag(c, &host)
	return c
}

// gone says whether a file is certainly not there.
func gone(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return errors.Is(err, fs.ErrNotExist)
}

// leave takes off what is applied, or says what stays. Keeping never fails: an uninstallation must not hang on a damaged journal.
func leave(cmd *cobra.Command, o *options, host string, reverting, fromMSI bool, log hclog.Logger) error {
	var done []string
	// The service was told to stop; what it has half done it finishes or leaves to the journal first.
	end := time.Now().Add(3 * service.StopWithin)
	for {
		var err error
		if done, err = agent.Uninstall(cmd.Context(), o.state, host, reverting, log); !errors.Is(err, journal.ErrLocked) || time.Now().After(end) {
			return left(cmd, o, done, err, reverting, fromMSI)
		}
	}
}

// left says what an uninstallation left or took off.
func left(cmd *cobra.Command, o *options, done []string, err error, reverting, fromMSI bool) error {
	undo := filepath.Join(o.state, journal.UndoFile)
	list := strings.Join(done, ", ")
	switch {
	case err != nil && reverting:
		if !fromMSI {
			if exe, xerr := os.Executable(); xerr == nil {
				err = errors.Join(err, service.Register(exe, false), service.Start())
			}
		}
		return fmt.Errorf("not everything could be taken off, and the agent stays; see %s: %w", undo, err)
	case err != nil:
		list = "what " + undo + " lists (the journal can't be read: " + err.Error() + ")"
	case list == "":
		list = "nothing"
	}
	if reverting {
		tellOnce(event.UninstalledClean, "Stopgap Agent was removed. Taken off before: %s.", list)
		fmt.Fprintf(cmd.OutOrStdout(), "taken off: %s\n", list)
		return nil
	}
	tellOnce(event.UninstalledKept, "Stopgap Agent was removed and looks after this server no more. Still applied: %s. %s says how to undo it by hand.", list, undo)
	fmt.Fprintf(cmd.OutOrStdout(), "still applied: %s; see %s\n", list, undo)
	return nil
}
