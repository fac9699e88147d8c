package bundle_test

import (
	"bytes"
	"fmt"

	"github.com/stopgap-em/stopgap/shared/bundle"
)

// A bundle carries a policy directory to a server that reaches no controller. Unpack reads it and verifies nothing:
// tufpolicy.VerifySigned does, with the result.
func ExampleUnpack() {
	var file bytes.Buffer
	err := bundle.Pack(&file, map[string][]byte{
		"metadata/1.root.json":          []byte("(the first root)"),
		"metadata/7.targets.json":       []byte("(the targets metadata)"),
		"targets/policy.yaml":           []byte("(what is allowed)"),
		"targets/mitigations/M1/1.yaml": []byte("(the document)"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	signed, err := bundle.Unpack(file.Bytes())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d root, %d documents\n", len(signed.Roots), len(signed.Documents))
	fmt.Printf("M1@1 says %s\n", signed.Documents["mitigations/M1/1.yaml"])
	// Output:
	// 1 root, 2 documents
	// M1@1 says (the document)
}
