package exchange_test

import (
	"fmt"

	stopgapv1 "github.com/stopgap-em/stopgap/proto/stopgap/v1"
	"github.com/stopgap-em/stopgap/shared/exchange"
)

// A build is compared only with the first fixed build of its own cumulative-update line. Nothing is guessed about a line that is
// newer than the table.
func ExampleTable_State() {
	table, err := exchange.NewTable(&stopgapv1.FixedBuilds{Revision: 1, Fixes: []*stopgapv1.Fix{
		{Cve: "CVE-2026-42897", Builds: []string{"15.2.1544.41", "15.2.1748.46"}},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, text := range []string{"15.2.1544.40", "15.2.1544.41", "15.2.1258.50", "15.2.1800.1"} {
		build, err := exchange.ParseBuild(text)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s, of line %s: %s\n", build, build.Line(), table.State("CVE-2026-42897", build))
	}
	// Output:
	// 15.2.1544.40, of line 15.2.1544: unfixed
	// 15.2.1544.41, of line 15.2.1544: fixed
	// 15.2.1258.50, of line 15.2.1258: unfixed
	// 15.2.1800.1, of line 15.2.1800: unknown build
}

// Parts that are missing count as 0.
func ExampleCompareVersions() {
	order, err := exchange.CompareVersions("7.1.1993", "7.1.1993.0")
	fmt.Println(order, err)
	// Output: 0 <nil>
}
