"""Small networks of the families that people use, with random weights and statistics, in evaluation mode."""

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs, outputs, kernel=3, act=True, **options):
    """Convolution, batch norm and, unless told otherwise, ReLU."""
    options.setdefault("padding", kernel // 2)
    layers = [nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Residual(nn.Module):
    """body(x) + shortcut(x), then ReLU if told so."""

    def __init__(self, body, shortcut=None, act=True):
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut or nn.Identity(), act

    def forward(self, x):
        y = self.body(x) + self.shortcut(x)
        return F.relu(y) if self.act else y


def resnet():
    def block(inputs, outputs, stride=1):
        body = nn.Sequential(conv_bn(inputs, outputs, stride=stride), conv_bn(outputs, outputs, act=False))
        return Residual(body, conv_bn(inputs, outputs, 1, False, stride=stride) if stride > 1 else None)

    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(conv_bn(3, 4), nn.MaxPool2d(3, 2, 1), block(4, 4), block(4, 8, 2), *head)


def preact_resnet():
    def block(channels):
        layers = [(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2)]
        return Residual(nn.Sequential(*(layer for pair in layers for layer in pair)), act=False)

    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), block(4), block(4), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()
    )


def vgg_bn():
    features = conv_bn(3, 4), nn.MaxPool2d(2), conv_bn(4, 8), conv_bn(8, 8), nn.MaxPool2d(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 5))


def mobilenet():
    def block(channels, stride):
        hidden = 3 * channels
        body = nn.Sequential(
            *(nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels)),
        )
        return Residual(body, act=False) if stride == 1 else body

    return nn.Sequential(
        conv_bn(3, 4, stride=2), block(4, 1), block(4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self):
        super().__init__()
        make = lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 3, 3, padding=1, bias=False))  # noqa: E731
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.ModuleList(make(c) for c in (4, 7, 10))
        self.transition = nn.Sequential(nn.BatchNorm2d(13), nn.ReLU(), nn.Conv2d(13, 6, 1), nn.AvgPool2d(2))
        self.second = nn.ModuleList(make(c) for c in (6, 9))
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.first:
            x = torch.cat([x, layer(x)], 1)
        x = self.transition(x)
        for layer in self.second:
            x = torch.cat([x, layer(x)], 1)
        return F.relu(self.norm(x)).mean((2, 3))


class UNet(nn.Module):
    """Down twice, up once by a transposed convolution and once by interpolation."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = conv_bn(3, 4), conv_bn(4, 6), conv_bn(6, 8)
        self.up2, self.up1 = nn.ConvTranspose2d(8, 6, 2, 2), conv_bn(6, 4, 1, act=False)
        self.merge2, self.merge1, self.last = conv_bn(12, 6), conv_bn(8, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(x), second], 1))
        x = F.interpolate(self.up1(x), scale_factor=2, mode="bilinear")
        return self.last(self.merge1(torch.cat([x, first], 1)))


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self):
        super().__init__()
        self.one, self.three = conv_bn(3, 2, 1), nn.Sequential(conv_bn(3, 2, 1), conv_bn(2, 3))
        self.five = nn.Sequential(conv_bn(3, 2, 1), conv_bn(2, 2, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(3, 2, 1))

    def forward(self, x):
        return F.avg_pool2d(
            torch.cat([branch(x) for branch in (self.one, self.three, self.five, self.pool)], 1), 3, 2, ceil_mode=True
        )


class SqueezeExcite(nn.Module):
    """Channels scaled by what a small network makes of their means."""

    def __init__(self):
        super().__init__()
        self.conv, self.reduce, self.expand = conv_bn(3, 8), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.last = nn.Conv2d(8, 2, 3)

    def forward(self, x):
        x = self.conv(x)
        scale = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))
        return self.last(x * scale)


class RepVgg(nn.Module):
    """Branches of one input that add up: one convolution after all."""

    def __init__(self):
        super().__init__()
        self.three, self.one, self.same = conv_bn(3, 3, act=False), conv_bn(3, 3, 1, False), nn.BatchNorm2d(3)

    def forward(self, x):
        return F.relu(self.three(x) + self.one(x) + self.same(x))


class ShuffleNet(nn.Module):
    """Grouped 1x1 convolutions with a shuffle of channels between them."""

    def __init__(self):
        super().__init__()
        self.first, self.depth = conv_bn(3, 8, 1), conv_bn(8, 8, act=False, groups=8, stride=2)
        self.mix, self.last = nn.Conv2d(8, 8, 1, groups=2), nn.PReLU(8)

    def forward(self, x):
        x = self.mix(F.channel_shuffle(self.depth(self.first(x)), 2))
        left, right = x.chunk(2, 1)
        return self.last(torch.cat([right, left.abs()], 1))


def temporal():
    weighted = [nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 3, 3, dilation=d)) for d in (1, 2)]
    causal = [
        (nn.ConstantPad1d((2 * d, 0), 0.0), conv, nn.LeakyReLU(0.2)) for d, conv in zip((1, 2), weighted, strict=True)
    ]
    return nn.Sequential(*(Residual(nn.Sequential(*layers), act=False) for layers in causal))


def volumetric():
    pooled = nn.Conv3d(1, 3, 3, padding=1, padding_mode="replicate"), nn.BatchNorm3d(3), nn.ReLU(), nn.MaxPool3d(2)
    return nn.Sequential(
        *pooled, nn.ConvTranspose3d(3, 2, 2, 2), nn.Hardtanh(), nn.AvgPool3d(2), nn.Flatten(), nn.Linear(16, 3)
    )


class Transformer(nn.Module):
    """One layer of attention over patches, with a class token."""

    def __init__(self):
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.layer(x)[:, 0])


class Several(nn.Module):
    """Two inputs, a dictionary of outputs, a layer that is used twice, an output that is an input."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(6, 6)

    def forward(self, image, vector):
        hidden = F.relu(self.shared(F.relu(self.shared(vector))))
        both = torch.cat([image.flatten(1), hidden], 1)
        return {"both": both, "pair": (hidden.view(-1, 2, 3), vector), "largest": both.argmax(1)}


IMAGE = (3, 8, 8)
# Those that are piecewise linear, so that they are a chain too, and others.
PIECEWISE = {
    "resnet": (resnet, IMAGE),
    "preact-resnet": (preact_resnet, IMAGE),
    "vgg-bn": (vgg_bn, IMAGE),
    "mobilenet": (mobilenet, IMAGE),
    "densenet": (DenseNet, IMAGE),
    "unet": (UNet, IMAGE),
    "inception": (Inception, IMAGE),
    "repvgg": (RepVgg, IMAGE),
    "shufflenet": (ShuffleNet, (3, 6, 6)),
    "temporal": (temporal, (3, 9)),
    "volumetric": (volumetric, (1, 4, 4, 4)),
}
OTHERS = {"squeeze-excite": (SqueezeExcite, IMAGE), "transformer": (Transformer, IMAGE)}


def build(make, dtype=torch.float64):
    """The model, its parameters and statistics random but the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                nn.init.uniform_(module.running_var, 0.5, 2)
                for tensor in (module.running_mean, module.weight, module.bias):
                    nn.init.normal_(tensor)
        return model.to(dtype).eval()


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Together(nn.Module):
    """Modules side by side, each with the input times a number of its own, so that no two have equal steps."""

    def __init__(self, modules):
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def one(self, number, x):
        return self.parts[number]((1 + number / 64) * x)

    def forward(self, x):
        return [self.one(number, x) for number in range(len(self.parts))]


class Converted:
    """Cases, each a function or a module and the shape of its input, of which all of one shape are converted at once.

    This costs little more than to convert one of them. If it fails, each is converted by itself, so that the test that
    fails is that of the case.
    """

    def __init__(self, convert, cases):
        self.convert, self.cases, self.made = convert, cases, {}

    def of(self, name):
        """The model, what it was converted to, and the number of the case among their outputs."""
        shape = self.cases[name][1]
        names = [each for each, case in self.cases.items() if case[1] == shape]
        if shape not in self.made:
            try:
                self.made[shape] = self.make(names)
            except Exception:
                self.made[shape] = None
        if self.made[shape] is None:
            return *self.make([name]), 0
        return *self.made[shape], names.index(name)

    def make(self, names):
        functions = [self.cases[name][0] for name in names]
        model = Together([each if isinstance(each, nn.Module) else Function(each) for each in functions])
        model = model.double().eval()
        return model, self.convert(model, samples(2, *self.cases[names[0]][1]))


# The one for tests of options.
MODEL, SHAPE = PIECEWISE["resnet"]


def samples(count, *shape, dtype=torch.float64):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def written(x, place, values):
    """A copy of x with values at a place."""
    x = x.clone()
    x[place] = values
    return x


class Counts(nn.Module):
    """Multiplies by how often it ran, or only counts it."""

    def __init__(self, is_read):
        super().__init__()
        self.is_read = is_read
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.count += 1
        return x * self.count if self.is_read else 2 * x
