package mitigation_test

import (
	"fmt"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/mitigation"
)

const unifiedMessaging = `id: UM1
revision: 2
title: Stop Unified Messaging
cves: [CVE-2021-26857]
severity: SEVERITY_CRITICAL
appliesTo:
  roles: [ROLE_MAILBOX]
  exchange:
    - {product: "15.1", from: "15.1.225.42"}
actions:
  - id: um
    service: {name: MSExchangeUM, startType: DISABLED, state: STOPPED}
`

// Author, signer, controller and agent read a document with the same function.
func ExampleParse() {
	doc, err := mitigation.Parse("um.yaml", []byte(unifiedMessaging))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(doc.Ref(), doc.GetTitle())
	fmt.Println("leaves when:", mitigation.RemoveWhen(doc.Mitigation))
	for _, facts := range []*stopgapv1.Facts{
		{Roles: []stopgapv1.Role{stopgapv1.Role_ROLE_MAILBOX}, ExchangeBuild: "15.1.2507.6"},
		{Roles: []stopgapv1.Role{stopgapv1.Role_ROLE_MAILBOX}, ExchangeBuild: "15.2.1748.10"},
		{Roles: []stopgapv1.Role{stopgapv1.Role_ROLE_EDGE}, ExchangeBuild: "15.1.2507.6"},
	} {
		fmt.Printf("for %s %s: %t\n", facts.GetRoles(), facts.GetExchangeBuild(), mitigation.Applies(doc.Mitigation, facts))
	}
	// Output:
	// UM1@2 Stop Unified Messaging
	// leaves when: REMOVE_WHEN_SERVER_FIXED
	// for [ROLE_MAILBOX] 15.1.2507.6: true
	// for [ROLE_MAILBOX] 15.2.1748.10: false
	// for [ROLE_EDGE] 15.1.2507.6: false
}

// What is wrong with a document is named with file, line and column.
func ExampleProblems() {
	const document = `id: M9
revision: 1
title: A document with a typo
severity: SEVERITY_HIGH
appliesTo: {rolls: [ROLE_MAILBOX]}
`
	_, err := mitigation.Parse("m9.yaml", []byte(document))
	fmt.Println(err)
	// Output:
	// m9.yaml:5:13: unknown field "rolls", expected one of [roles exchange requires]
	// m9.yaml:5:12: applies_to.roles: must contain at least 1 item(s) (repeated.min_items)
}

// The catalogue has ready documents for mitigations that Microsoft published, and the table of fixed builds.
func ExampleCatalogue() {
	files, err := mitigation.Catalogue()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, f := range files {
		if f.Name != "M1.yaml" {
			continue
		}
		doc, err := mitigation.Parse(f.Name, f.Content)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s for %s: %s\n", doc.Ref(), doc.GetCves(), doc.GetTitle())
	}
	// Output: M1@1 for [CVE-2022-41040]: ProxyNotShell: refuse Autodiscover requests that reach PowerShell
}
