"""The cluster: builds on pools of workers, over NATS JetStream. Jobs flow with no process of ours between."""
