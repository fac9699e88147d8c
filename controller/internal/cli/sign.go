package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/stopgap-em/stopgap/shared/clirun"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/mitigation"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/signkey"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

const passphraseVariable = "STOPGAP_KEY_PASSPHRASE"

// passphrase comes from the environment, or from a prompt.
func passphrase(stderr io.Writer, prompt string, twice bool) ([]byte, error) {
	if p, ok := os.LookupEnv(passphraseVariable); ok {
		return []byte(p), nil
	}
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return nil, fmt.Errorf("no terminal to ask for the passphrase; set %s", passphraseVariable)
	}
	ask := func(text string) ([]byte, error) {
		fmt.Fprint(stderr, text)
		p, err := term.ReadPassword(fd)
		fmt.Fprintln(stderr)
		return p, err
	}
	p, err := ask(prompt)
	if err != nil || !twice {
		return p, err
	}
	again, err := ask("The same again: ")
	if err == nil && string(again) != string(p) {
		err = errors.New("the two passphrases differ")
	}
	return p, err
}

func keys() *cobra.Command {
	c := &cobra.Command{
		Use:   "keys",
		Short: "Make the offline keys that sign policy; no controller needed",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var role, out string
	g := &cobra.Command{
		Use:   "generate --role root|targets",
		Short: "Make an Ed25519 key, encrypted with a passphrase (prompt, or " + passphraseVariable + ")",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if role != signkey.RoleRoot && role != signkey.RoleTargets {
				return fmt.Errorf("%w: --role is root or targets, not %q", clirun.ErrUsage, role)
			}
			p, err := passphrase(cmd.ErrOrStderr(), "Passphrase for the new "+role+" key: ", true)
			if err != nil {
				return err
			}
			k, err := signkey.Generate(role)
			if err != nil {
				return err
			}
			private, public, err := k.Save(out, p)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s key %s\nprivate, encrypted: %s (keep it offline, with a copy elsewhere)\npublic: %s (for `stopgap policy init`)\n", role, k.ID[:8], private, public)
			return nil
		},
	}
	g.Flags().StringVar(&role, "role", "", "root (names the other keys) or targets (signs what may run on servers)")
	g.Flags().StringVar(&out, "out", ".", "directory to write")
	c.AddCommand(g)
	return c
}

const dirHelp = "the policy directory"

func defaultDir() string {
	if d := os.Getenv("STOPGAP_POLICY"); d != "" {
		return d
	}
	return "policy"
}

// publics reads public keys and sorts them by the role they were made for.
func publics(paths []string) (map[string][]signkey.Public, error) {
	out := map[string][]signkey.Public{}
	for _, p := range paths {
		k, err := signkey.LoadPublic(p)
		if err != nil {
			return nil, err
		}
		if k.Role != signkey.RoleRoot && k.Role != signkey.RoleTargets {
			return nil, fmt.Errorf("%s is a %s key; --key takes root and targets keys", p, k.Role)
		}
		out[k.Role] = append(out[k.Role], k)
	}
	return out, nil
}

// maxKeyFile bounds files of public keys, and what stands beside a key.
const maxKeyFile = 64 << 10

// onlineKeys reads the public halves of a controller's online keys.
func onlineKeys(path string) (snapshot, timestamp signkey.Public, err error) {
	data, err := files.Read(path, maxKeyFile)
	if err != nil {
		return snapshot, timestamp, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return snapshot, timestamp, fmt.Errorf("%s is not the public.json of `stopgap-controller init`", path)
	}
	for _, raw := range list {
		k, err := signkey.ParsePublic(path, raw)
		if err != nil {
			return snapshot, timestamp, err
		}
		switch k.Role {
		case signkey.RoleSnapshot:
			snapshot = k
		case signkey.RoleTimestamp:
			timestamp = k
		}
	}
	if snapshot.ID == "" || timestamp.ID == "" {
		return snapshot, timestamp, fmt.Errorf("%s does not hold a snapshot and a timestamp key", path)
	}
	return snapshot, timestamp, nil
}

func say(cmd *cobra.Command, lines []string) {
	for _, l := range lines {
		fmt.Fprintln(cmd.OutOrStdout(), clirun.Printable(l))
	}
}

func policies() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Make, change and check a signed policy directory; no controller needed",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	dir, days := defaultDir(), 90
	c.PersistentFlags().StringVar(&dir, "dir", dir, dirHelp+" (or STOPGAP_POLICY)")
	c.PersistentFlags().IntVar(&days, "expires-days", days, "days until what is signed now ends; a newer version must be signed and published before")
	life := func() (time.Duration, error) {
		if days < 1 || days > 3650 {
			return 0, fmt.Errorf("%w: --expires-days is 1 to 3650, not %d", clirun.ErrUsage, days)
		}
		return time.Duration(days) * 24 * time.Hour, nil
	}
	edit := func(use, short string, args cobra.PositionalArgs, f func(d *policydir.Dir, args []string, life time.Duration) ([]string, error)) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			l, err := life()
			if err != nil {
				return err
			}
			d, err := policydir.Open(dir)
			if err != nil {
				return err
			}
			lines, err := f(d, args, l)
			if err != nil {
				return fmt.Errorf("nothing was changed: %w", err)
			}
			say(cmd, append(lines, d.Missing()...))
			return nil
		}}
	}
	c.AddCommand(policyInit(&dir, life), rotateRoot(&dir),
		edit("add FILE...", "Put mitigation documents, or a fixed-builds table, into the policy (names of the catalogue, or \"catalogue\", may stand among them)", cobra.MinimumNArgs(1),
			func(d *policydir.Dir, args []string, l time.Duration) ([]string, error) {
				files, err := readFiles(args)
				if err != nil {
					return nil, err
				}
				var in []policydir.File
				for _, f := range files {
					in = append(in, policydir.File{Name: f.name, Content: f.data})
				}
				return d.Add(in, time.Now(), l)
			}),
		edit("remove ID@REV", "Take a revision out of the policy: once signed and published, servers that have it take it off", cobra.ExactArgs(1),
			func(d *policydir.Dir, args []string, l time.Duration) ([]string, error) {
				id, rev, err := mitigation.ParseRef(args[0])
				if err != nil {
					return nil, fmt.Errorf("%w: %w", clirun.ErrUsage, err)
				}
				return d.Remove(id, rev, time.Now(), l)
			}),
		edit("permit never|during-rollout|always [ID]", "Say how far a controller may take mitigations (or one) off by itself", cobra.RangeArgs(1, 2),
			func(d *policydir.Dir, args []string, l time.Duration) ([]string, error) {
				return d.Permit(strings.Join(args[1:], ""), args[0], time.Now(), l)
			}),
		edit("refresh", "Make a new version with the same content and a new end", cobra.NoArgs,
			func(d *policydir.Dir, _ []string, l time.Duration) ([]string, error) { return d.Refresh(time.Now(), l) }),
		policyDiff(&dir), policyVerify(&dir))
	return c
}

func policyInit(dir *string, life func() (time.Duration, error)) *cobra.Command {
	var cfg policydir.InitConfig
	var files []string
	var online string
	rootDays := 365
	c := &cobra.Command{
		Use:   "init --root-threshold M --targets-threshold N --key PUB... --online public.json",
		Short: "Make a policy directory: a root that names the keys, and an empty policy; both still to be signed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			byRole, err := publics(files)
			if err != nil {
				return err
			}
			cfg.Root, cfg.Targets = byRole[signkey.RoleRoot], byRole[signkey.RoleTargets]
			if cfg.Snapshot, cfg.Timestamp, err = onlineKeys(online); err != nil {
				return err
			}
			if cfg.TargetsLife, err = life(); err != nil {
				return err
			}
			cfg.RootLife, cfg.Now = time.Duration(rootDays)*24*time.Hour, time.Now()
			d, err := policydir.Init(*dir, cfg)
			if err != nil {
				return err
			}
			say(cmd, append([]string{fmt.Sprintf("%s: root 1 and an empty policy", *dir)}, d.Missing()...))
			return nil
		},
	}
	f := c.Flags()
	f.IntVar(&cfg.RootThreshold, "root-threshold", 0, "how many root keys must sign a new root")
	f.IntVar(&cfg.TargetsThreshold, "targets-threshold", 0, "how many targets keys must sign a policy")
	f.StringArrayVar(&files, "key", nil, "public key file of `stopgap keys generate`; its role stands in it")
	f.StringVar(&online, "online", "", "public.json from the controller's data directory (online/)")
	f.IntVar(&rootDays, "root-expires-days", rootDays, "days until the root ends")
	for _, n := range []string{"root-threshold", "targets-threshold", "key", "online"} {
		_ = c.MarkFlagRequired(n)
	}
	return c
}

func rotateRoot(dir *string) *cobra.Command {
	var cfg policydir.RotateConfig
	var add, removeRoot, removeTargets []string
	var online string
	rootDays := 365
	c := &cobra.Command{
		Use:   "rotate-root",
		Short: "Make the next root: other keys, other thresholds, other online keys, or only a new end; to be signed by the old and the new root keys",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := policydir.Open(*dir)
			if err != nil {
				return err
			}
			if cfg.Add, err = publics(add); err != nil {
				return err
			}
			cfg.Remove = map[string][]string{signkey.RoleRoot: removeRoot, signkey.RoleTargets: removeTargets}
			if online != "" {
				sn, ts, err := onlineKeys(online)
				if err != nil {
					return err
				}
				cfg.Snapshot, cfg.Timestamp = &sn, &ts
			}
			cfg.Life, cfg.Now = time.Duration(rootDays)*24*time.Hour, time.Now()
			lines, err := d.RotateRoot(cfg)
			if err != nil {
				return fmt.Errorf("nothing was changed: %w", err)
			}
			say(cmd, append(lines, d.Missing()...))
			return nil
		},
	}
	f := c.Flags()
	f.StringArrayVar(&add, "add-key", nil, "public key file to add, in the role that stands in it")
	f.StringArrayVar(&removeRoot, "remove-root-key", nil, "id, or the first characters of it, of a root key to remove")
	f.StringArrayVar(&removeTargets, "remove-targets-key", nil, "the same for a targets key")
	f.IntVar(&cfg.RootThreshold, "root-threshold", 0, "new threshold (default: as before)")
	f.IntVar(&cfg.TargetsThreshold, "targets-threshold", 0, "new threshold (default: as before)")
	f.StringVar(&online, "online", "", "public.json of the controller's new online keys")
	f.IntVar(&rootDays, "root-expires-days", rootDays, "days until the new root ends")
	return c
}

func policyDiff(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "diff",
		Short: "Say in words what changes against the last signed version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := policydir.Open(*dir)
			if err != nil {
				return err
			}
			lines, err := d.Diff()
			say(cmd, lines)
			return err
		},
	}
}

func policyVerify(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check signatures, thresholds, ends, hashes and every document, as a controller does before it takes it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := policydir.Open(*dir)
			if err != nil {
				return err
			}
			st, err := d.Verify(time.Now())
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "fine: policy %s\nroot %d (SHA-256 %x), targets %d with %d documents, valid until %s (%s)\n", d.Identity(), st.Versions.Root,
				tufpolicy.RootFingerprint(st.Root), st.Versions.Targets, len(st.Documents), st.Expires.Format(time.DateOnly), st.ExpiresFirst)
			return nil
		},
	}
}

// pinned keeps a key to one policy: the policy's identity stands beside the key from the first signature on. A directory that
// somebody made with roots of their own could otherwise show a signer a history that never was.
func pinned(cmd *cobra.Command, key, identity string) error {
	file := strings.TrimSuffix(key, ".key") + ".policy"
	data, err := files.Read(file, maxKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(cmd.ErrOrStderr(), "%s signs for this policy for the first time: compare %s with what the others see; it is kept in %s\n", key, identity, file)
		return files.Replace(file, []byte(identity+"\n"), files.Private)
	case err != nil:
		return err
	case strings.TrimSpace(string(data)) != identity:
		return fmt.Errorf("%s signs for policy %.64s, this is policy %s; nothing was signed", key, strings.TrimSpace(string(data)), identity)
	}
	return nil
}

// agree asks the person at the terminal.
func agree(cmd *cobra.Command, yes bool) error {
	if yes || !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	fmt.Fprint(cmd.ErrOrStderr(), "Sign this? Type yes: ")
	var answer string
	if _, err := fmt.Fscanln(cmd.InOrStdin(), &answer); err != nil || answer != "yes" {
		return errors.New("nothing was signed")
	}
	return nil
}

func sign() *cobra.Command {
	var files []string
	var yes bool
	c := &cobra.Command{
		Use:   "sign --key KEY [DIR]",
		Short: "Add a key's signature to what in a policy directory still lacks signatures, having said what that is; no controller needed",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := defaultDir()
			if len(args) == 1 {
				dir = args[0]
			}
			d, err := policydir.Open(dir)
			if err != nil {
				return err
			}
			lines, err := d.Diff()
			if err != nil {
				return err
			}
			say(cmd, lines)
			for _, f := range files {
				if err := pinned(cmd, f, d.Identity()); err != nil {
					return err
				}
			}
			if err := agree(cmd, yes); err != nil {
				return err
			}
			for _, f := range files {
				p, err := passphrase(cmd.ErrOrStderr(), "Passphrase of "+f+": ", false)
				if err != nil {
					return err
				}
				k, err := signkey.Load(f, p)
				if err != nil {
					return err
				}
				if k.Weak() {
					fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s is poorly protected (a program for tests wrote it): replace the key\n", f)
				}
				if lines, err = d.Sign(k); err != nil {
					return fmt.Errorf("%s: %w", f, err)
				}
				say(cmd, lines)
			}
			return nil
		},
	}
	c.Flags().StringArrayVar(&files, "key", nil, "private key file; may be given several times")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask (it is not asked where there is no terminal either)")
	_ = c.MarkFlagRequired("key")
	return c
}
