"""What an image is and how it is read: slides, pictures, videos, frames and volumes, in bands."""
