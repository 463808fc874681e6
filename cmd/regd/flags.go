package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// envAnnotation marks a flag that can also be set by an environment variable, and names that.
const envAnnotation = "regd_env"

// bindEnv lets an environment variable set a flag that is not given.
func bindEnv(fs *pflag.FlagSet, flag, variable string) {
	f := fs.Lookup(flag)
	f.Usage += " [$" + variable + "]"
	if f.Annotations == nil {
		f.Annotations = map[string][]string{}
	}
	f.Annotations[envAnnotation] = []string{variable}
}

// envName is the variable of a flag when it has no special one.
func envName(flag string) string {
	return "REGD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// enumValue is a flag with a closed list of values.
type enumValue struct {
	value   *string
	allowed []string
}

// enumVar defines a flag that takes one of the allowed values. What value holds is the default.
func enumVar(fs *pflag.FlagSet, value *string, name, usage string, allowed ...string) {
	enumVarP(fs, value, name, "", usage, allowed...)
}

func enumVarP(fs *pflag.FlagSet, value *string, name, short, usage string, allowed ...string) {
	fs.VarP(&enumValue{value, allowed}, name, short, usage+": "+strings.Join(allowed, ", "))
}

// String implements pflag.Value.
func (e *enumValue) String() string { return *e.value }

// Type implements pflag.Value.
func (e *enumValue) Type() string { return "word" }

// Set implements pflag.Value.
func (e *enumValue) Set(s string) error {
	if !slices.Contains(e.allowed, s) {
		return fmt.Errorf("must be one of %s%s", strings.Join(e.allowed, ", "), didYouMean(s, e.allowed, ""))
	}
	*e.value = s
	return nil
}
