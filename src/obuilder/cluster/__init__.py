"""The cluster: builds on pools of workers, over NATS JetStream. No process of ours is between."""
