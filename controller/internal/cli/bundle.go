package cli

import (
	"bytes"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/stopgap-em/stopgap/shared/bundle"
	"github.com/stopgap-em/stopgap/shared/files"
	"github.com/stopgap-em/stopgap/shared/policydir"
	"github.com/stopgap-em/stopgap/shared/tufpolicy"
)

func bundles() *cobra.Command {
	dir, out := defaultDir(), ""
	c := &cobra.Command{
		Use:   "bundle --out FILE",
		Short: "Pack a signed policy directory into one file for servers that reach no controller; no controller needed",
		Long: "Packs every root, the newest targets metadata and its documents, after verifying all of it. `stopgap-agent apply --bundle`\n" +
			"verifies it again on the server. Whoever carries it there releases it: a bundle says nothing of waves or server lists.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := policydir.Open(dir)
			if err != nil {
				return err
			}
			st, err := d.Verify(time.Now())
			if err != nil {
				return err
			}
			contents, err := d.Files()
			if err != nil {
				return err
			}
			var b bytes.Buffer
			if err := bundle.Pack(&b, contents); err != nil {
				return err
			}
			if _, err := bundle.Unpack(b.Bytes()); err != nil { // what no agent would take is not handed out
				return err
			}
			if err := files.Replace(out, b.Bytes(), files.Public); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes, policy %s, targets %d, valid until %s (%s)\npin %x-%d\nOn the server: stopgap-agent apply --bundle FILE --host ..., the first time with --pin, told to its administrator by another way than the file.\n",
				out, b.Len(), d.Identity(), st.Versions.Targets, st.Expires.Format(time.DateOnly), st.ExpiresFirst, tufpolicy.RootFingerprint(st.Root), st.Versions.Targets)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", dir, dirHelp+" (or STOPGAP_POLICY)")
	c.Flags().StringVar(&out, "out", "", "the file to write")
	_ = c.MarkFlagRequired("out")
	return c
}
