//go:build !windows

package service

import (
	"context"
	"errors"
)

var errNotWindows = errors.New("there is no service control manager here: this is not Windows")

// Run is refused.
func Run(context.Context, func(context.Context) error) error { return errNotWindows }

// Supported is refused.
func Supported() error { return errNotWindows }

// Register is refused.
func Register(string, bool) error { return errNotWindows }

// Unregister is refused.
func Unregister(context.Context) error { return errNotWindows }

// Start is refused.
func Start() error { return errNotWindows }
