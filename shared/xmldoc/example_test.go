package xmldoc_test

import (
	"fmt"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// An editor finds the element, cuts its bytes out, and leaves every other byte of the file as it was.
func ExampleParse() {
	file := []byte("<configuration>\n  <!-- keep me -->\n  <rules><rule name='A'/><rule name='B' /></rules>\n</configuration>")
	doc, err := xmldoc.Parse(file)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, rule := range doc.Root.Find("rules").All("rule") {
		line, col := xmldoc.LineCol(file, rule.Start)
		fmt.Printf("%s is at line %d, column %d\n", rule.Attr("name"), line, col)
	}
	first := doc.Root.Find("rules", "rule")
	fmt.Printf("%s%s\n", file[:first.Start], file[first.End:])
	// Output:
	// A is at line 3, column 10
	// B is at line 3, column 26
	// <configuration>
	//   <!-- keep me -->
	//   <rules><rule name='B' /></rules>
	// </configuration>
}

// An error names the line and the column.
func ExampleSyntaxError() {
	_, err := xmldoc.Parse([]byte("<configuration>\n  <rules></rule>\n</configuration>"))
	fmt.Println(err)
	// Output: line 2, column 10: </rule> where </rules> should be
}

// Two elements are equal when they mean the same, however they are written.
func ExampleEqual() {
	a, _ := xmldoc.Parse([]byte(`<add name="x" value="a&amp;b" />`))
	b, _ := xmldoc.Parse([]byte("<add value='a&#38;b'   name='x'></add>"))
	fmt.Println(xmldoc.Equal(a.Root, b.Root))
	// Output: true
}
