"""What generator and discriminator play for: losses, penalties, augmentations."""
