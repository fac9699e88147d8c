package iis

import (
	"bytes"
	"fmt"

	"github.com/stopgap-em/stopgap/shared/xmldoc"
)

// SetAttr sets an attribute of an element to a value, or takes it away (nil). An attribute that was absent is appended
// after the others; taking it away gives the bytes from before.
func SetAttr(data []byte, e *xmldoc.Element, name string, value *string) ([]byte, error) {
	start, end, vStart, vEnd, err := attrSpan(data, e, name)
	if err != nil {
		return nil, err
	}
	switch {
	case start < 0 && value == nil:
		return data, nil
	case start < 0:
		return concat(data[:end], fmt.Appendf(nil, " %s=%q", name, *value), data[end:]), nil
	case value == nil:
		return concat(data[:start], data[end:]), nil
	}
	return concat(data[:vStart], []byte(*value), data[vEnd:]), nil
}

// attrSpan finds an attribute with the white space before it, and its value. When it is absent start is -1 and end is
// where the last attribute ends.
func attrSpan(data []byte, e *xmldoc.Element, name string) (start, end, vStart, vEnd int, err error) {
	i := e.Start + 1 + len(e.Name)
	last := i
	for i < e.OpenEnd {
		from := i
		for i < e.OpenEnd && bytes.IndexByte([]byte(" \t\r\n"), data[i]) >= 0 {
			i++
		}
		if i >= e.OpenEnd || data[i] == '>' || data[i] == '/' {
			break
		}
		nameStart := i
		for i < e.OpenEnd && bytes.IndexByte([]byte("= \t\r\n"), data[i]) < 0 {
			i++
		}
		n := string(data[nameStart:i])
		for i < e.OpenEnd && data[i] != '"' && data[i] != '\'' {
			i++
		}
		if i >= e.OpenEnd {
			break
		}
		quote := data[i]
		vs := i + 1
		ve := bytes.IndexByte(data[vs:e.OpenEnd], quote)
		if ve < 0 {
			return 0, 0, 0, 0, fmt.Errorf("iis: <%s>: attribute %q is not closed", e.Name, n)
		}
		i = vs + ve + 1
		last = i
		if n == name {
			return from, i, vs, vs + ve, nil
		}
	}
	return -1, last, 0, 0, nil
}
