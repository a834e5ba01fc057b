// Command parley is an instant-messaging server for standard MQTT clients, and
// the tools that go with it.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/parley-im/parley/configs"
)

// version is set by the linker; otherwise it is the module's.
var version = ""

func main() {
	os.Exit(run(os.Args[1:]))
}

// usageError ends the program with code 2.
type usageError struct{ error }

func run(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.Execute()
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usageError{}):
		fmt.Fprintf(os.Stderr, "parley: %v\nSee parley --help.\n", err)
		return 2
	}
	fmt.Fprintf(os.Stderr, "parley: %v\n", err)
	return 1
}

func newRoot() *cobra.Command {
	root := group(&cobra.Command{
		Use:           "parley",
		Short:         "Chat for standard MQTT clients: every message committed before it is acknowledged",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionString(),
	}, newServeCmd(), newUserCmd(), newCheckCmd(), newBackupCmd(), newRestoreCmd(), newPushCmd(), newExportCmd(), newImportCmd(), newVersionCmd(),
		newChatCmd(), newBenchCmd())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	return root
}

// group puts commands below cmd, which shows its help unless it does something
// itself. A name that none of them has is a mistake, which a script must notice.
func group(cmd *cobra.Command, below ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(below...)
	cmd.SuggestionsMinimumDistance = 2
	if cmd.RunE == nil {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = ": did you mean " + strings.Join(near, " or ") + "?"
		}
		return usageError{fmt.Errorf("there is no %s %s%s", cmd.CommandPath(), args[0], hint)}
	}
	return cmd
}

// exactly wants n arguments, and says what they are.
func exactly(n int, hint string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{errors.New(hint)}
		}
		return nil
	}
}

// none wants no arguments.
func none(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, not %s", cmd.CommandPath(), strings.Join(args, " "))}
	}
	return nil
}

func newVersionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: none,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "parley", versionString())
		},
	}
}

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

// addConfigFlags gives a command --config and a flag for every key.
func addConfigFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName { return pflag.NormalizedName(flagName(name)) })
	f.String("config", "", "configuration file (YAML)")
	for _, k := range configs.Keys() {
		def := configs.Default(k.Name)
		help := k.Help
		if def != "" {
			help += " (default " + def + ")"
		}
		f.String(flagName(k.Name), "", help)
		if def == "true" || def == "false" {
			f.Lookup(flagName(k.Name)).NoOptDefVal = "true"
		}
	}
	for _, k := range configs.Lists() {
		f.String(flagName(k.Name), "", k.Help)
	}
}

// flagName is the flag of a key: --data-dir for data_dir, --mqtt.addr as it is.
func flagName(key string) string { return strings.ReplaceAll(key, "_", "-") }

// loadConfig reads the configuration of a command with addConfigFlags.
func loadConfig(cmd *cobra.Command) (*configs.Config, error) {
	f := cmd.Flags()
	file, err := f.GetString("config")
	if err != nil {
		return nil, err
	}
	flags := make(map[string]string)
	for _, k := range slices.Concat(configs.Keys(), configs.Lists()) {
		if fl := f.Lookup(flagName(k.Name)); fl != nil && fl.Changed {
			flags[k.Name] = fl.Value.String()
		}
	}
	cfg, err := configs.Load(configs.Sources{File: file, Env: os.LookupEnv, Flags: flags})
	var faults configs.Faults
	if errors.As(err, &faults) {
		return nil, fmt.Errorf("the configuration has %s:\n  %s", plural(len(faults), "fault"), strings.ReplaceAll(faults.Error(), "\n", "\n  "))
	}
	return cfg, err
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	if stem, ok := strings.CutSuffix(noun, "y"); ok {
		noun = stem + "ie"
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
