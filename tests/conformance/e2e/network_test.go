// Kubernetes' e2e.test with the specs of the network alone: the whole of it takes several times as long to build.
// What follows is test/e2e/e2e_test.go of that release with the flags that we give, and one of our own.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/reporters"
	"github.com/onsi/ginkgo/v2/types"
	"k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"

	// The names of features are defined and frozen.
	_ "k8s.io/kubernetes/test/e2e/feature"

	_ "k8s.io/kubernetes/test/e2e/network"

	// What a failed spec prints, and how the framework waits for nodes.
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	_ "k8s.io/kubernetes/test/utils/format"
)

var junit = flag.String("junit-of-run", "", "File for a JUnit report of the specs that ran, without the hundreds that were not selected.")

func TestMain(m *testing.M) {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if flag.CommandLine.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "not a flag:", flag.CommandLine.Args())
		os.Exit(1)
	}
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	os.Exit(m.Run())
}

func TestE2E(t *testing.T) {
	e2e.RunE2ETests(t)
}

var _ = ginkgo.ReportAfterSuite("JUnit report of the specs that ran", func(report ginkgo.Report) {
	if *junit == "" {
		return
	}
	report.SpecReports = slices.DeleteFunc(report.SpecReports, func(spec types.SpecReport) bool {
		return spec.LeafNodeType.Is(types.NodeTypeIt) && spec.NumAttempts == 0
	})
	for index := range report.SpecReports {
		if spec := &report.SpecReports[index]; spec.State == types.SpecStatePassed && spec.NumAttempts > 1 {
			spec.State = types.SpecStateFailed
			spec.Failure.Message = fmt.Sprintf("passed at attempt %d only: a spec that is repeated has failed", spec.NumAttempts)
		}
	}
	how := reporters.JunitReportConfig{
		OmitTimelinesForSpecState: types.SpecStatePassed,
		OmitCapturedStdOutErr:     true,
		OmitSpecLabels:            true,
		OmitLeafNodeType:          true,
	}
	framework.ExpectNoError(reporters.GenerateJUnitReportWithConfig(report, *junit, how))
})
