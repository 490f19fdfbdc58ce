package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/words"
)

const configUsage = `usage: manifold-agent config convert [--agent-config FILE] FILE
       manifold-agent config validate [--agent-config FILE] [FILE]
`

// config runs the commands on configuration files.
func config(args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] != "convert" && args[0] != "validate" {
		fmt.Fprint(stderr, configUsage)
		return flag.ErrHelp
	}
	flags := flag.NewFlagSet("manifold-agent config "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	what := map[string]string{"convert": "`file` to write the agent's configuration to", "validate": "the agent's configuration `file`, to validate as well"}
	agentFile := flags.String("agent-config", "", what[args[0]])
	err := flags.Parse(args[1:])
	alone := args[0] == "validate" && *agentFile != "" && flags.NArg() == 0
	if err != nil || flags.NArg() != 1 && !alone {
		fmt.Fprint(stderr, configUsage)
		return flag.ErrHelp
	}
	if args[0] == "validate" {
		return errors.Join(
			validate(flags.Arg(0), configfile.ValidatePlugin, stdout),
			validate(*agentFile, configfile.ValidateAgent, stdout))
	}
	raw, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return err
	}
	if err := convert(raw, *agentFile, stdout, stderr); err != nil {
		return fmt.Errorf("%s: %w", flags.Arg(0), err)
	}
	return nil
}

// convert prints the plugin's configuration, and on stderr what it changed.
func convert(raw []byte, agentFile string, stdout, stderr io.Writer) error {
	c, err := configfile.Convert(raw)
	if err != nil {
		return err
	}
	for _, change := range c.Changes {
		fmt.Fprintln(stderr, change)
	}
	if agentFile != "" {
		if err := os.WriteFile(agentFile, append(c.Agent, '\n'), 0o600); err != nil {
			return err
		}
		fmt.Fprintln(stderr, "wrote the agent's configuration to", agentFile)
	}
	_, err = fmt.Fprintf(stdout, "%s\n", c.Plugin)
	return err
}

// validate prints the findings in a file, one line each, and fails if any of them is more
// than a warning. An empty path means no file.
func validate(path string, look func([]byte) []configfile.Finding, stdout io.Writer) error {
	if path == "" {
		return nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	wrong := 0
	for _, f := range look(raw) {
		fmt.Fprintf(stdout, "%s:%s\n", path, f)
		if !f.Warning {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%s: %s", path, words.Count(wrong, "error", "errors"))
	}
	return nil
}
