// One etcd member inside this program, for tests: it skips fsync, a lab's data need not survive the machine.
package main

import (
	"flag"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

func runEtcd(args []string) error {
	flags := flag.NewFlagSet("etcd", flag.ExitOnError)
	dir := flags.String("data-dir", "", "folder of the data")
	client := flags.String("listen-client-url", "http://127.0.0.1:2379", "where the API servers connect to")
	peer := flags.String("listen-peer-url", "http://127.0.0.1:2380", "where the other members connect to; required by etcd, unused with one member")
	name := flags.String("name", "default", "name of this member")
	cluster := flags.String("initial-cluster", "", "all members as NAME=PEER-URL, separated by commas; none: this one alone")
	flags.Parse(args) //nolint:errcheck // ExitOnError

	clientURL, err := url.Parse(*client)
	if err != nil {
		return err
	}
	peerURL, err := url.Parse(*peer)
	if err != nil {
		return err
	}
	config := embed.NewConfig()
	config.Name = *name
	config.Dir = *dir
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	if *cluster != "" {
		config.InitialCluster = *cluster
	}

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer etcd.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-etcd.Err():
		return err
	case <-stop:
		return nil
	}
}
