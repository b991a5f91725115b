"""The cluster: builds on pools of workers, over NATS JetStream, with no process of ours between."""
